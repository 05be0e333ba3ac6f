"""Pictures in the terminal: what it is asked, what it is sent, and that no key is lost."""

import base64
import io
import os
import pty
import re
import termios
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mlx_llama4.cli.talk import preview
from mlx_llama4.cli.talk.preview import Detected, detect, picture

KITTY = b"\x1b_Gi=31;OK\x1b\\"
ITERM2 = b"\x1bP>|iTerm2 3.5.0\x1b\\"
XTERM = b"\x1bP>|XTerm(390)\x1b\\"
PLAIN, SIXEL = b"\x1b[?62;22c", b"\x1b[?62;4;22c"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> int:
    """The far end of a terminal that is standard input and output."""
    master, slave = pty.openpty()
    monkeypatch.setenv("TERM", "xterm-256color")
    ends = SimpleNamespace(stdin=Stream(slave), stdout=Stream(slave))
    monkeypatch.setattr(preview, "sys", ends)  # pytest puts its own into the real one
    yield master
    os.close(slave)
    os.close(master)


class Stream(io.StringIO):
    """Stands in for a terminal's stream."""

    def __init__(self, descriptor: int):
        super().__init__()
        self.descriptor = descriptor

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return True


def asked(terminal: int, answer: bytes) -> Detected:
    def reply() -> None:
        seen = b""
        while not seen.endswith(b"\x1b[c"):
            seen += os.read(terminal, 1000)
        os.write(terminal, answer)

    thread = threading.Thread(target=reply, daemon=True)
    thread.start()
    before = termios.tcgetattr(preview.sys.stdin.fileno())
    found = detect(5 if answer.endswith(b"c") else 0.05)
    assert termios.tcgetattr(preview.sys.stdin.fileno()) == before
    thread.join(5)
    return found


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (KITTY + PLAIN, Detected("kitty")),
        (KITTY + ITERM2 + SIXEL, Detected("kitty")),
        (ITERM2 + SIXEL, Detected("iterm2")),
        (XTERM + SIXEL, Detected("sixel")),
        (XTERM + PLAIN, Detected(None)),
        (b"\x1b_Gi=31;ENOTSUP\x1b\\" + PLAIN, Detected(None)),
        (b"hel" + XTERM + b"lo\n" + SIXEL, Detected("sixel", b"hello\n")),
        (b"typed", Detected(None, b"typed")),
        (b"", Detected(None)),
    ],
)
def test_what_the_terminal_says(terminal: int, answer: bytes, found: Detected) -> None:
    assert asked(terminal, answer) == found


def test_not_asked(terminal: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert detect() == Detected(None)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(preview.sys, "stdin", io.StringIO("x"))
    assert detect() == Detected(None)
    os.set_blocking(terminal, False)
    with pytest.raises(BlockingIOError):
        os.read(terminal, 1)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("size", "shown", "cells"),
    [((800, 600), (320, 240), (32, 12)), ((2000, 10), (400, 2), (40, 1)), ((5, 9), (5, 9), (1, 1))],
)
def test_png(size: tuple[int, int], shown: tuple[int, int], cells: tuple[int, int]) -> None:
    """Small pictures keep their size; each chunk of kitty's but the last says that more comes."""
    kitty = picture(noise(*size), "kitty")
    chunks = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty)
    assert chunks[0][0].startswith(f"a=T,f=100,q=2,c={cells[0]},r={cells[1]},m=")
    assert [keys[-1] for keys, _ in chunks] == ["1"] * (len(chunks) - 1) + ["0"]
    assert all(len(data) == preview.KITTY_CHUNK for _, data in chunks[:-1])
    assert len(chunks) > 1 or size != (800, 600)
    iterm2 = re.fullmatch(
        r"\x1b\]1337;File=inline=1;size=(\d+);width=(\d+);height=(\d+);"
        r"preserveAspectRatio=1:([\w+/=]+)\x07\n",
        picture(noise(*size), "iterm2"),
    )
    assert (int(iterm2[2]), int(iterm2[3])) == cells
    png = base64.b64decode("".join(data for _, data in chunks))
    assert png == base64.b64decode(iterm2[4])
    assert len(png) == int(iterm2[1])
    assert Image.open(io.BytesIO(png)).size == shown


def test_sixel() -> None:
    """Decoded again: every pixel has the picture's colour, in percent."""
    image = Image.new("RGB", (9, 14), "red")
    image.paste("blue", (3, 5, 7, 13))
    sixel = picture(image, "sixel")
    body = re.fullmatch(r'\x1bPq"1;1;9;14(.*)\x1b\\\n', sixel)[1]
    colours = dict(re.findall(r"#(\d+);2;(\d+;\d+;\d+)", body))
    decoded: dict[tuple[int, int], str] = {}
    bands = re.sub(r"#\d+;2;\d+;\d+;\d+", "", body).split("-")[:-1]
    for top, band in enumerate(bands):
        for number, columns in re.findall(r"#(\d+)([?-~]+)\$", band):
            for x, column in enumerate(columns):
                for bit in range(6):
                    if (ord(column) - 63) >> bit & 1:
                        assert (x, 6 * top + bit) not in decoded
                        decoded[x, 6 * top + bit] = colours[number]
    assert len(decoded) == 9 * 14
    names = {"red": "100;0;0", "blue": "0;0;100"}
    for (x, y), colour in decoded.items():
        assert colour == names["blue" if 3 <= x < 7 and 5 <= y < 13 else "red"]
