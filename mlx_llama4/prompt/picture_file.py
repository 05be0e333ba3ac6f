"""A picture, wherever it is → its pixels, in bounded memory.

Decoders unpack a file whole. How many bytes they take for it is known from its header, so a picture
that would take too many is refused before it is decoded.
"""

import io
import math
import re
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from mlx_llama4.errors import ImageError
from mlx_llama4.prompt.fetch import Fetched, Fetching, fetch, shown
from mlx_llama4.prompt.heic import is_heic, png_of_heic
from mlx_llama4.prompt.picture_source import data_of, kind_of, path_of
from mlx_llama4.prompt.pixels import STRIP_BYTES, Picture

ImageSource = str | Path | bytes | Fetched | Image.Image  # a text is a path or a URL

# Pillow's own limit. JPEGs of more pixels, which some telephones take, are decoded at half or less.
MAX_PIXELS = 2 * 89_478_485
# Resizing holds about 16 bytes of coefficients for each pixel of a side.
MAX_SIDE = 1_000_000
MOST_PIPED_BYTES = 256 * 2**20  # of a file that cannot be read twice

# Memory for decoding and scaling a picture, beside its file: the most that is taken by default.
PICTURE_BYTES = 2**30
# Bytes of Pillow's pixels, by mode; others have 4.
MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
# Bytes a pixel that decoders take beside those, by measurement with Pillow 13.0; AVIF's is that of
# 8 bits, doubled. Formats that are not here are rare, and count with OTHER_BYTES.
BESIDE_BYTES = {
    "PNG": 0.2, "JPEG": 0.2, "MPO": 0.2, "GIF": 0.2, "BMP": 0.2, "DIB": 0.2, "PPM": 0.2,
    "TGA": 0.2, "WEBP": 13.2, "AVIF": 20.0,
}  # fmt: skip
# EPS would run a PostScript interpreter. The others may hold a picture in another format, or packed
# data, whose size the header does not say.
UNREAD = {"EPS", "BLP", "FITS", "ICNS", "IPTC"}
ICONS = (b"\0\0\1\0", b"\0\0\2\0")
PNG_HEAD = re.compile(rb"\x89PNG\r\n\x1a\n.{4}IHDR(.{4})(.{4})", re.DOTALL)  # width, height
SCAN, MOST_SCANS = b"\xff\xda", 100  # of a progressive JPEG; encoders make 6 to 20
PROGRESSIVE_BYTES = 6.2  # JPEG's coefficients, which are all held
JPEG2000_BYTES = 5.4  # for each channel
OTHER_BYTES = 8.0
TILE, MOST_TILES = 336, 16  # of the releases

WEB_PATH = re.compile(r"(https?|file):/", re.IGNORECASE)
DEFAULT_FETCHING = Fetching()


def open_picture(
    source: ImageSource,
    fetching: Fetching = DEFAULT_FETCHING,
    most_bytes: int = PICTURE_BYTES,
) -> Picture:
    """Open a picture; of an animation, the first frame.

    source: a path, a URL (http, https, file or data), an encoded file's bytes, or a PIL image.
    fetching: whether and how URLs are fetched. most_bytes: of memory for decoding. Raises
    ImageError, which names the source.
    """
    if isinstance(source, Image.Image):
        return Picture(source, "the image", most_bytes)
    if isinstance(source, bytes):
        return _from_bytes(source, "the image", most_bytes)
    if isinstance(source, Fetched):
        return _from_bytes(source.data, shown(source.url), most_bytes)
    if isinstance(source, str):
        kind = kind_of(source)
        if kind == "web":
            return open_picture(fetch(source, fetching), most_bytes=most_bytes)
        if kind == "data":
            data = data_of(source, fetching.most_bytes)
            return _from_bytes(data, "the data: URL", most_bytes)
        if kind == "file":
            local = path_of(source)
            if local is None:
                raise ImageError(f"{shown(source)} is on another machine; give a file of this one")
            source = local
    if not str(source):
        raise ImageError("a picture's path is empty")
    return _from_file(Path(source), most_bytes)


def open_image(source: ImageSource, fetching: Fetching = DEFAULT_FETCHING) -> Image.Image:
    """Open a picture as 8-bit RGB, upright, with white behind transparent parts."""
    return open_picture(source, fetching).whole()


def _from_bytes(data: bytes, name: str, most_bytes: int) -> Picture:
    return _decode(io.BytesIO(data), name, most_bytes)


def _from_file(path: Path, most_bytes: int) -> Picture:
    try:
        with path.expanduser().open("rb") as stream:
            if stream.seekable():
                return _decode(stream, str(path), most_bytes)
            data = stream.read(MOST_PIPED_BYTES + 1)
    except FileNotFoundError:
        if WEB_PATH.match(str(path)):
            raise ImageError(f"{path}: a Path loses a slash of a URL; give a str") from None
        raise ImageError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder, not a picture") from None
    except OSError as failure:
        raise ImageError(f"cannot read {path}: {failure.strerror or failure}") from None
    except (RuntimeError, ValueError) as failure:  # "~nobody/x.png", a NUL in the name
        raise ImageError(f"cannot read {path}: {failure}") from None
    if len(data) > MOST_PIPED_BYTES:
        raise ImageError(f"{path} has more than {MOST_PIPED_BYTES // 2**20} MiB; give a file")
    return _from_bytes(data, str(path), most_bytes)


def _decode(stream: BinaryIO, name: str, most_bytes: int) -> Picture:
    if not stream.read(1):
        raise ImageError(f"{name} is empty (0 bytes)")
    stream.seek(0)
    try:
        with warnings.catch_warnings():
            # Pillow warns about odd and large files; serious problems are raised below.
            warnings.simplefilter("ignore")
            _check_room(_icon_bytes(stream), most_bytes, name)
            image = _opened(stream)
            full = image.width * image.height
            if full > MAX_PIXELS and isinstance(image, JpegImageFile):
                image.draft(None, (image.width // 2, image.height // 2))
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if max(image.size) > MAX_SIDE:
                raise ImageError(
                    f"{name} is {image.width}×{image.height} pixels; no side may have more than "
                    f"{MAX_SIDE:,}: cut it or scale it down"
                )
            need = decoding_bytes(image, full)
            _check_room(need, most_bytes, name)
            if "progressive" in image.info:
                _check_scans(stream, name)
            image.load()
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(
            f"{name} unpacks to more than {MAX_PIXELS // 10**6} million pixels; scale it down"
        ) from None
    except Image.UnidentifiedImageError:
        stream.seek(0)
        data = stream.read(12)
        if is_heic(data):
            png = png_of_heic(data + stream.read(), name)
            return _decode(io.BytesIO(png), name, most_bytes)
        raise ImageError(
            f"{name} is not a picture in a known format; use PNG, JPEG, WebP, GIF, TIFF or BMP"
        ) from None
    except MemoryError:
        raise ImageError(f"{name} takes more memory than there is; scale it down") from None
    except Exception as failure:  # decoders of damaged files raise almost anything
        raise ImageError(f"{name} is damaged and cannot be decoded ({failure})") from None
    return Picture(image, name, most_bytes - need + _scaling_room(*image.size))


def _opened(stream: BinaryIO) -> Image.Image:
    """Read the header."""
    try:
        image = Image.open(stream)
    except Image.DecompressionBombError:
        stream.seek(0)
        if stream.read(3) != b"\xff\xd8\xff":
            raise
        stream.seek(0)
        return JpegImageFile(stream)  # can be decoded at a fraction of its size
    if image.format in UNREAD:
        raise Image.UnidentifiedImageError
    return image


def _check_room(need: int, most_bytes: int, name: str) -> None:
    if need > most_bytes:
        raise ImageError(
            f"{name} would take {need // 10**6:,} MB of memory to unpack, and there are "
            f"{max(most_bytes, 0) // 10**6:,} MB for it; scale it down"
        )


def _check_scans(stream: BinaryIO, name: str) -> None:
    """Refuse a progressive JPEG that says the same over and over: each scan takes time for all of
    the picture, and 95 bytes are enough for one.
    """
    position, scans = stream.tell(), 0
    stream.seek(0)
    while piece := stream.read(2**20):
        scans += piece.count(SCAN)  # in a scan's data, a zero follows 0xFF
    stream.seek(position)
    if scans > MOST_SCANS:
        raise ImageError(f"{name} is a JPEG of {scans:,} scans; convert it to PNG first")


def _icon_bytes(stream: BinaryIO) -> int:
    """Memory that opening an icon takes; 0 for any other file.

    Pillow decodes what is in it at once, perhaps a PNG, whatever size the icon's header says.
    """
    is_icon = stream.read(4) in ICONS
    sizes = PNG_HEAD.findall(stream.read(MOST_PIPED_BYTES)) if is_icon else []
    stream.seek(0)
    pixels = (int.from_bytes(width) * int.from_bytes(height) for width, height in sizes)
    return 8 * max(pixels, default=0)  # decoded, and once more for its mask


def decoding_bytes(image: Image.Image, full: int | None = None) -> int:
    """Memory that decoding and scaling a picture takes, by its header.

    full: how many pixels its file has, if it is decoded at a fraction of its size.
    """
    pixels = image.width * image.height
    beside = BESIDE_BYTES.get(image.format or "", OTHER_BYTES)
    if image.format == "JPEG2000":
        beside = JPEG2000_BYTES * len(image.getbands())
    if image.format == "TIFF":
        rows = getattr(image, "tag_v2", {}).get(278, image.height)  # of a strip, which is held
        beside *= min(int(rows) / image.height, 1)
    held = pixels * (MODE_BYTES.get(image.mode, 4) + beside)
    if "progressive" in image.info:
        held += PROGRESSIVE_BYTES * (full or pixels)
    return int(held) + _scaling_room(*image.size)


def _scaling_room(width: int, height: int) -> int:
    """Memory for scaling to at most 16 tiles of 336 × 336 pixels and to one, whichever way up."""
    strip = min(STRIP_BYTES, 64 * width * height)
    side = TILE * math.sqrt(MOST_TILES)  # of a square of that many pixels
    between = side * math.sqrt(width * height) + TILE * max(width, height)
    tiles = min(side * side, 4 * width * height + 2 * TILE * TILE)
    return strip + 4 * int(between + tiles)
