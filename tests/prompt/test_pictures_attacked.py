"""Mutated pictures: each is tiled or refused in one line; none crashes, hangs or takes much memory.

Seeded, so that a failure can be looked into: its number makes the same bytes again.
"""

import io
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_llama4.errors import MOST_CHARACTERS, UNPRINTABLE, ImageError
from mlx_llama4.prompt.image import ImageTiler, pixel_table
from tests.commands import run_here
from tests.golden.pictures import draw

TILER = ImageTiler(28, 4, pixel_table(1 / 255, [0.5] * 3, [0.5] * 3))
PICTURES = 1_500
MOST_BYTES = 64 * 2**20

# Name → mode, format, options of the encoder.
KINDS = {
    "png": ("RGB", "PNG", {}),
    "png with alpha": ("RGBA", "PNG", {}),
    "png of a palette": ("P", "PNG", {"transparency": 1}),
    "png of 16 bits": ("I;16", "PNG", {}),
    "animated png": ("RGB", "PNG", {"save_all": True}),
    "jpeg": ("RGB", "JPEG", {}),
    "progressive jpeg": ("RGB", "JPEG", {"progressive": True}),
    "cmyk jpeg": ("CMYK", "JPEG", {}),
    "gif": ("P", "GIF", {}),
    "animated gif": ("P", "GIF", {"save_all": True}),
    "webp": ("RGB", "WEBP", {}),
    "lossless webp": ("RGBA", "WEBP", {"lossless": True}),
    "animated webp": ("RGB", "WEBP", {"save_all": True}),
    "bmp": ("RGB", "BMP", {}),
    "tiff": ("RGB", "TIFF", {}),
    "tiff by lzw": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "tiff by deflate": ("RGBA", "TIFF", {"compression": "tiff_adobe_deflate"}),
    "tiff of floats": ("F", "TIFF", {}),
    "fax": ("1", "TIFF", {"compression": "group4"}),
    "avif": ("RGB", "AVIF", {}),
    "jpeg 2000": ("RGB", "JPEG2000", {}),
    "icon": ("RGBA", "ICO", {}),
    "ppm": ("RGB", "PPM", {}),
    "tga": ("RGB", "TGA", {"compression": "tga_rle"}),
    "pcx": ("RGB", "PCX", {}),
    "dds": ("RGBA", "DDS", {}),
    "sgi": ("RGB", "SGI", {}),
}


def encoded(mode: str, format_: str, options: dict) -> bytes:
    image = draw(40, 30)
    if mode in ("F", "I;16"):
        grey = np.asarray(image.convert("L"))
        image = Image.fromarray(grey / np.float32(255) if mode == "F" else grey.astype(np.uint16))
    elif mode == "P":
        image = image.quantize(16)
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"exif": exif} if format_ in ("JPEG", "PNG", "WEBP", "AVIF") else {}
    if options.get("save_all"):
        more["append_images"] = [image.transpose(Image.Transpose.ROTATE_180)]
    stream = io.BytesIO()
    image.save(stream, format_, **options, **more)
    return stream.getvalue()


def flipped(data: bytearray, choose: random.Random) -> bytearray:
    for _ in range(choose.randint(1, 8)):
        data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
    return data


def head_replaced(data: bytearray, choose: random.Random) -> bytearray:
    """Sizes, offsets and counts are in the first bytes, mostly."""
    for _ in range(choose.randint(1, 4)):
        data[choose.randrange(min(len(data), 64))] = choose.choice((0, 1, 127, 128, 255))
    return data


def cut(data: bytearray, choose: random.Random) -> bytearray:
    return data[: choose.randrange(len(data))]


def repeated(data: bytearray, choose: random.Random) -> bytearray:
    start, length = choose.randrange(len(data)), choose.randint(1, 200)
    return data[:start] + data[start : start + length] * choose.randint(2, 50) + data[start:]


def removed(data: bytearray, choose: random.Random) -> bytearray:
    start = choose.randrange(len(data))
    return data[:start] + data[start + choose.randint(1, 40) :]


def large_number(data: bytearray, choose: random.Random) -> bytearray:
    start = choose.randrange(max(len(data) - 4, 1))
    value = choose.choice((2**31 - 1, 2**32 - 1, 2**31, 2**16, 10**6, 0))
    data[start : start + 4] = value.to_bytes(4, choose.choice(("big", "little")))
    return data


def overwritten(data: bytearray, choose: random.Random) -> bytearray:
    start = choose.randrange(len(data))
    data[start : start + 30] = choose.randbytes(30)
    return data


MUTATIONS: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    flipped, head_replaced, cut, repeated, removed, large_number, overwritten,
)  # fmt: skip


@pytest.fixture(scope="module")
def originals() -> list[bytes]:
    return [encoded(*kind) for kind in KINDS.values()]


def mutated(originals: list[bytes], number: int) -> bytes:
    choose = random.Random(number)
    data = bytearray(originals[number % len(originals)])
    if number % 7 == 6:  # the head of one format, the rest of another
        other = choose.choice(originals)
        return bytes(data[: choose.randrange(len(data))] + other[choose.randrange(len(other)) :])
    for _ in range(choose.randint(1, 3)):
        data = choose.choice(MUTATIONS)(data or bytearray(1), choose)
    return bytes(data)


def test_unharmed_they_are_tiled(originals: list[bytes]) -> None:
    for data in originals:
        image = TILER.tile(data)
        icon = data.startswith(b"\0\0\1\0")
        assert sorted(image.size) == ([18, 24] if icon else [30, 40])


def test_an_icon_that_holds_a_large_picture_is_refused() -> None:
    """Pillow believes the icon's own header, 16 by 16, until it has unpacked the rest."""
    stream = io.BytesIO()
    Image.new("L", (9000, 9000)).save(stream, "PNG")
    png = stream.getvalue()
    entry = bytes((16, 16, 0, 0, 1, 0, 32, 0)) + len(png).to_bytes(4, "little") + b"\x16\0\0\0"
    icon = b"\0\0\1\0\1\0" + entry + png
    with pytest.raises(ImageError, match="the image would take 648 MB of memory to unpack"):
        TILER.tile(icon, most_bytes=600 * 10**6)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    """300 of them took 28 s for 64 megapixels, in a file of 280 KB."""
    data = encoded("RGB", "JPEG", {"progressive": True})
    last = data[data.rindex(b"\xff\xda") : -2]
    assert TILER.tile(data[:-2] + last * 50 + data[-2:]).num_tiles > 1
    with pytest.raises(ImageError, match=r"the image is a JPEG of 1,01\d scans"):
        TILER.tile(data[:-2] + last * 1000 + data[-2:])


@pytest.mark.parametrize("format_", ["ICNS", "EPS"])
def test_formats_whose_size_is_not_known_are_not_read(format_: str) -> None:
    with pytest.raises(ImageError, match="is not a picture in a known format"):
        TILER.tile(encoded("RGB", format_, {}))


@pytest.mark.slow
def test_mutated_pictures_are_tiled_or_refused(
    originals: list[bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    tiled, refusals = 0, set()
    tracemalloc.start()
    for number in range(PICTURES):
        try:
            image = TILER.tile(mutated(originals, number))
        except ImageError as error:
            line = str(error)
            assert line.startswith("the image ") and len(line) <= MOST_CHARACTERS, number
            assert not UNPRINTABLE.search(line), number
            refusals.add(line)
        else:
            tiled += 1
            rows, columns = image.grid
            count = rows * columns + (rows * columns > 1)
            assert image.tiles.shape == (count, 3, 28, 28), number
            assert image.tiles.dtype == np.uint8 and min(image.size) > 0, number
            assert np.isfinite(image.pixel_values()).all(), number
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MOST_BYTES
    assert tiled > PICTURES / 10 and len(refusals) > 20
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_mutated_pictures_on_the_command_line(
    originals: list[bytes], demo_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "picture"
    for number in range(10_000, 10_060):
        path.write_bytes(mutated(originals, number))
        done = run_here("ask", "What?", "-i", path, "-m", demo_folder, "--max-tokens", 1)
        if done.returncode:
            assert (done.returncode, done.stdout) == (2, ""), number
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"error: {path} "), number
