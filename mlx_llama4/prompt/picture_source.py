"""What a text that names a picture means: a path, or a file:, data:, http: or https: URL."""

import base64
import binascii
import re
from typing import Literal
from urllib.parse import unquote, unquote_to_bytes

from mlx_llama4.errors import ImageError

Kind = Literal["path", "file", "data", "web"]

SUFFIXES = (  # noqa: SIM905
    "avif bmp gif heic heif ico jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
).split()

SCHEME = re.compile(r"(?i:(?P<web>https?)://|(?P<data>data):|(?P<file>file):/)")
OTHER = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://")
LOCAL = re.compile(r"(?i:file:(?://(?:localhost)?)?)(?=/(?!/))")


def kind_of(source: str) -> Kind:
    """Tell a URL from a path. Raises ImageError for the URL of a scheme that is not read."""
    match = SCHEME.match(source)
    if match is not None:
        return "web" if match["web"] else "data" if match["data"] else "file"
    if (other := OTHER.match(source)) is not None:
        raise ImageError(
            f"{other['scheme'].lower()}: URLs of pictures are not read; download it, and give the "
            "path of the file"
        )
    return "path"


def path_of(file_url: str) -> str | None:
    """The path that a file: URL means; None if it is of another machine, or no such URL."""
    local = LOCAL.match(file_url)
    return None if local is None else unquote(file_url[local.end() :])


def data_of(data_url: str, most_bytes: int) -> bytes:
    """The bytes in a data: URL (RFC 2397). Raises ImageError, which never quotes them."""
    head, comma, body = data_url.partition(",")
    if not comma:
        raise ImageError("the data: URL has no comma, after which its data would begin")
    if len(body) > most_bytes * 3:  # each byte of a percent-encoded one takes three characters
        raise ImageError(f"the data: URL has more than {most_bytes // 10**6} MB; give a file")
    data = unquote_to_bytes(body)
    if not head.lower().rstrip().endswith(";base64"):
        return data
    try:
        # White space may come from a line that was wrapped; the end's padding is often left out.
        plain = re.sub(rb"\s+", b"", data).rstrip(b"=")
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("the data: URL's base64 is damaged; give the picture as a file") from None
