"""Show pictures inside the terminal, if it says that it can.

The terminal is asked once; nothing is guessed from its name. Kitty's graphics protocol has a query
of its own, iTerm2 reports its name and version, and sixel is attribute 4 of the device attributes.
Every terminal sends those, so they mark the end of the answers. Inside tmux or screen, the queries
reach that program, not the terminal, and it answers for itself.
"""

import base64
import fcntl
import io
import os
import re
import select
import struct
import sys
import termios
import time
import tty
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from PIL import Image

Protocol = Literal["kitty", "iterm2", "sixel"]

ROWS = 12  # of a picture, at most
COLUMNS = 40
MOST_SIZE = (1600, 960)  # pixels to make it from: enough for cells of 40 by 80
CELL = (10, 20)  # pixels, if the terminal does not say
SECONDS = 1.0
KITTY_CHUNK = 4096  # base64 bytes
COLOURS = 64  # in a sixel picture

# Query a one-pixel picture (not to be shown), then name and version, then the attributes.
QUESTIONS = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[>q\x1b[c"
ANSWERS = re.compile(
    rb"(?P<kitty>\x1b_Gi=31;(?P<ok>[^\x1b]*)\x1b\\)|(?P<version>\x1bP>\|(?P<name>[^\x1b]*)\x1b\\)"
    rb"|(?P<attributes>\x1b\[\?(?P<numbers>[\d;]*)c)"
)


@dataclass(frozen=True)
class Detected:
    """What asking the terminal found."""

    protocol: Protocol | None  # None: the terminal shows no pictures
    typed: bytes = b""  # keys that were typed in the meantime


def detect(seconds: float = SECONDS) -> Detected:
    """Ask the terminal how it can show pictures; once a session, before reading any keys."""
    if os.environ.get("TERM", "dumb") == "dumb":
        return Detected(None)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return Detected(None)
    terminal = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(terminal)
    except termios.error:
        return Detected(None)
    try:
        tty.setcbreak(terminal, termios.TCSANOW)
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), QUESTIONS)
        return _understood(_read_answers(terminal, seconds))
    except OSError:
        return Detected(None)
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def _read_answers(terminal: int, seconds: float) -> bytes:
    """Read until the attributes arrive, or time is up."""
    until = time.monotonic() + seconds
    data = b""
    while (left := until - time.monotonic()) > 0:
        if not select.select([terminal], [], [], left)[0]:
            break
        more = os.read(terminal, 4096)
        data += more
        if not more or any(answer["attributes"] for answer in ANSWERS.finditer(data)):
            break
    return data


def _understood(data: bytes) -> Detected:
    kitty, name, attributes = False, b"", set()
    for answer in ANSWERS.finditer(data):
        if answer["kitty"]:
            kitty = answer["ok"] == b"OK"
        elif answer["version"]:
            name = answer["name"]
        else:
            attributes = set(answer["numbers"].split(b";"))
    protocol: Protocol | None = None
    if kitty:
        protocol = "kitty"
    elif name.startswith(b"iTerm2 "):
        protocol = "iterm2"
    elif b"4" in attributes:
        protocol = "sixel"
    return Detected(protocol, ANSWERS.sub(b"", data))


def picture(image: Image.Image, protocol: Protocol) -> str:
    """What to write to show a small version of the picture (RGB) and go to a new line."""
    columns, rows, small = _fitted(image)
    if protocol == "sixel":
        return "".join(_sixel(small)) + "\n"
    stream = io.BytesIO()
    small.save(stream, "PNG")
    encoded = base64.b64encode(stream.getvalue()).decode()
    if protocol == "iterm2":
        size = f"size={len(stream.getvalue())};width={columns};height={rows}"
        return f"\x1b]1337;File=inline=1;{size};preserveAspectRatio=1:{encoded}\x07\n"
    return "".join(_kitty(encoded, columns, rows)) + "\n"


def _fitted(image: Image.Image) -> tuple[int, int, Image.Image]:
    """Columns and rows that the picture takes, and the picture scaled to them, never enlarged."""
    width, height = _cell()
    scale = min(COLUMNS * width / image.width, ROWS * height / image.height, 1.0)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    small = image.resize(size, Image.Resampling.LANCZOS) if size != image.size else image
    return -(-size[0] // width), -(-size[1] // height), small


def _cell() -> tuple[int, int]:
    """Width and height of a character in pixels."""
    try:
        answer = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
        rows, columns, width, height = struct.unpack("HHHH", answer)
        if width >= columns > 0 and height >= rows > 0:
            return width // columns, height // rows
    except (OSError, ValueError):  # no terminal
        pass
    return CELL


def _kitty(encoded: str, columns: int, rows: int) -> Iterator[str]:
    """Encode a picture. q=2 keeps the terminal from answering, which would look like typed keys."""
    keys = f"a=T,f=100,q=2,c={columns},r={rows},"
    for start in range(0, len(encoded), KITTY_CHUNK):
        more = int(start + KITTY_CHUNK < len(encoded))
        yield f"\x1b_G{keys}m={more};{encoded[start : start + KITTY_CHUNK]}\x1b\\"
        keys = ""


def _sixel(image: Image.Image) -> Iterator[str]:
    """Encode bands of six rows: for each colour, which of the six it has in each column."""
    import numpy as np

    reduced = image.quantize(COLOURS)
    palette = np.array(reduced.getpalette(), int).reshape(-1, 3) * 100 // 255  # percent
    pixels = np.asarray(reduced)
    yield f'\x1bPq"1;1;{image.width};{image.height}'
    for number in np.unique(pixels):
        red, green, blue = palette[number]
        yield f"#{number};2;{red};{green};{blue}"
    for top in range(0, len(pixels), 6):
        band = pixels[top : top + 6]
        bits = 1 << np.arange(len(band))[:, None]
        for number in np.unique(band):
            columns = ((band == number) * bits).sum(axis=0) + 63
            yield f"#{number}" + "".join(map(chr, columns)) + "$"
        yield "-"
    yield "\x1b\\"
