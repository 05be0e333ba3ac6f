"""Read HEIC and HEIF pictures, which iPhones take, with macOS's own converter.

Pillow reads them only if pillow-heif is registered; then none of this is needed.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from mlx_llama4.errors import ImageError

# ISO/IEC 23008-12: the brands of still pictures and of sequences of them.
BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
SECONDS = 60


def is_heic(head: bytes) -> bool:
    """Recognise the format by the first 12 bytes of a file, whatever its name."""
    return head[4:8] == b"ftyp" and head[8:12] in BRANDS


def png_of_heic(data: bytes, name: str) -> bytes:
    """Convert a picture to PNG with `sips`. Raises ImageError, naming `name`, if that fails."""
    if sys.platform != "darwin":
        raise ImageError(
            f"{name} is a HEIC picture, which only macOS converts by itself; make it PNG or JPEG "
            "first"
        )
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "picture.heic"), Path(folder, "picture.png")
        source.write_bytes(data)
        command = ["sips", "-s", "format", "png", str(source), "--out", str(target)]
        try:
            # sips exits with 0 even for pictures it cannot read; check the file instead.
            subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise ImageError(f"{name}: sips did not convert it in {SECONDS} s") from None
        except OSError as failure:
            raise ImageError(f"{name}: cannot run sips to convert it ({failure})") from None
        if not target.is_file():
            raise ImageError(f"{name} is a damaged HEIC picture: sips cannot convert it")
        return target.read_bytes()
