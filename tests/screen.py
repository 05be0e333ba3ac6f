"""A command on a terminal of its own, and what a user would see of it.

The program gets a real pseudo-terminal as its controlling one; pyte plays the terminal at the other
end: it draws, keeps what scrolls off, and answers what programs ask of a terminal (where the cursor
is). Knows nothing of the chat. Nothing is read, and so nothing is answered, except while waiting.
"""

import codecs
import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte
from pyte.screens import Char

from tests.commands import ENVIRONMENT

ENTER, ALT_ENTER, TAB, ESCAPE, BACKSPACE = "\r", "\x1b\r", "\t", "\x1b", "\x7f"
UP, DOWN, RIGHT, LEFT, HOME, END = (f"\x1b[{key}" for key in "ABCDHF")
CTRL_C, CTRL_D, CTRL_R, CTRL_U = "\x03", "\x04", "\x12", "\x15"

MLX_LLAMA4 = (sys.executable, "-m", "mlx_llama4")
SCROLLBACK_LINES = 2000
READ_BYTES = 65536
BRACKETED_PASTE = 2004
FAINT, GREY = 2, 90

# Zero-width joiners and marks of direction, variation selectors.
JOINING = re.compile("([\u200b-\u200f\u2060\ufe00-\ufe0f])")

# What pyte would print or misunderstand: strings for other programs (pictures, say), CSI with a
# private mark other than "?", controls that terminals pass over. And the beginning of a sequence,
# to wait for its end.
FOREIGN = re.compile(
    r"\x1b[P_^X].*?(?:\x1b\\|\x07)|\x1b\[[<=>][0-9;:]*[ -/]*[@-~]|[\x00-\x06\x0e-\x1a\x1c-\x1f]",
    re.DOTALL,
)
UNFINISHED = re.compile(r"\x1b(?:[P_^X](?:(?!\x1b\\|\x07).)*|\[[0-?]*[ -/]*)?\Z", re.DOTALL)

# Without preexec_fn, which warns wherever the tests have threads.
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


class Display(pyte.HistoryScreen):
    """pyte's screen, right about joined emoji and about losing rows; its answers go to `answer`."""

    def __init__(self, columns: int, rows: int, answer: Callable[[str], None]):
        self.answer = answer
        self.times_asked = 0
        super().__init__(columns, rows, history=SCROLLBACK_LINES)

    def write_process_input(self, data: str) -> None:
        self.answer(data)

    def set_mode(self, *modes: int, **kwargs: bool) -> None:
        self.times_asked += BRACKETED_PASTE in modes
        super().set_mode(*modes, **kwargs)

    def select_graphic_rendition(self, *attrs: int, **kwargs: bool) -> None:
        """pyte knows no faint; grey says the same."""
        super().select_graphic_rendition(*((GREY,) if attrs == (FAINT,) else attrs), **kwargs)

    def draw(self, data: str) -> None:
        """pyte drops all that follows a zero-width joiner or a variation selector."""
        for part in JOINING.split(data):
            if JOINING.fullmatch(part):
                self._join(part)
            else:
                super().draw(part)

    def _join(self, character: str) -> None:
        line = self.buffer[self.cursor.y]
        x = self.cursor.x - 1
        if x > 0 and line[x].data == "":  # the second half of a wide character
            x -= 1
        if x >= 0:
            line[x] = line[x]._replace(data=line[x].data + character)

    def resize(self, lines: int | None = None, columns: int | None = None) -> None:
        """As xterm does: rows go from below the cursor, then into the scrollback; no reflow."""
        lines = lines or self.lines
        for _ in range(self.cursor.y - lines + 1):
            self.history.top.append(self.buffer[0])
            for y in range(self.lines - 1):
                self.buffer[y] = self.buffer[y + 1]
            self.buffer.pop(self.lines - 1, None)
            self.cursor.y -= 1
        y, x = self.cursor.y, self.cursor.x
        for row in range(lines, self.lines):
            self.buffer.pop(row, None)
        self.lines = min(lines, self.lines)
        super().resize(lines, columns)
        self.cursor.y, self.cursor.x = y, min(x, self.columns - 1)


class Terminal:
    """`mlx-llama4 …` (or `command`) on a terminal of `columns` × `rows`.

    `home` holds what it remembers for the next run: the user's own files are out of its reach.
    """

    def __init__(
        self,
        *arguments: object,
        home: Path,
        columns: int = 80,
        rows: int = 24,
        command: tuple[str, ...] = MLX_LLAMA4,
        **environment: str,
    ):
        self.raw = bytearray()
        self.display = Display(columns, rows, self.type)
        self._stream = pyte.Stream(self.display)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # the beginning of an escape sequence
        self._asked = 0
        self._closed = self._hung_up = False
        self.master, slave = os.openpty()
        self._set_size(columns, rows)
        self.process = subprocess.Popen(
            [sys.executable, "-ISc", TAKE_TERMINAL, *command, *map(str, arguments)],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=home,
            env=environment_at(home) | environment,
        )  # fmt: skip
        os.close(slave)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if not self._hung_up:
            os.close(self.master)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def paste(self, text: str) -> None:
        """As terminals hand over what is pasted or dropped on them."""
        self.type(f"\x1b[200~{text}\x1b[201~")

    def enter(self, text: str, seconds: float = 60) -> None:
        """Type a line, and wait until the program asks for the next."""
        self.type(text)
        if text:
            self.until(text.splitlines()[-1][-20:], seconds)
        self.type(ENTER)
        self.until_asked(seconds)

    def resize(self, columns: int, rows: int) -> None:
        self.display.resize(rows, columns)
        self._set_size(columns, rows)  # the kernel sends SIGWINCH

    def hang_up(self) -> None:
        """Close the terminal, as a closed window does."""
        os.close(self.master)
        self._hung_up = True

    def until(self, text: str, seconds: float = 60) -> None:
        """Until `text` is seen, on the screen or in what has scrolled off it."""
        self._wait(lambda: text in self.text(), f"{text!r} to be seen", seconds)

    def until_asked(self, seconds: float = 60) -> None:
        """Until a line editor asks once more: it then switches bracketed paste on."""
        asked = lambda: self.display.times_asked > self._asked  # noqa: E731
        self._wait(asked, "the prompt", seconds)
        self._asked = self.display.times_asked
        self.settle()

    def until_done(self, seconds: float = 60) -> int:
        """Until nobody has the terminal open any more; the program's exit code."""
        self._wait(lambda: self._closed, "the end", seconds)
        return self.process.wait(5)

    def settle(self, seconds: float = 0.15) -> None:
        """Until nothing has been written for so long."""
        while self._read(seconds):
            pass

    def _wait(self, reached: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            silent = not self._read(0.05)
            over = self._closed or time.monotonic() > deadline
            if silent and over and not reached():
                state = "has ended" if self._closed else "goes on"
                raise AssertionError(
                    f"waited {seconds:.0f} s for {what}; the program {state}, "
                    f"the screen shows:\n{self.framed()}"
                )

    def _read(self, seconds: float) -> bool:
        """Show what is written within `seconds`; whether there was anything."""
        readable, _, _ = select.select([self.master], [], [], seconds)
        if not readable:
            return False
        data = b""
        with contextlib.suppress(OSError):  # what Linux says where others say that it is the end
            data = os.read(self.master, READ_BYTES)
        self._closed = not data
        self.raw += data
        text = self._held + self._decoder.decode(data)
        unfinished = UNFINISHED.search(text)
        end = unfinished.start() if unfinished else len(text)
        self._held = text[end:]
        self._stream.feed(FOREIGN.sub("", text[:end]))
        return bool(data)

    def lines(self) -> list[list[Char]]:
        """All cells, what has scrolled off first; no blanks at the ends of lines, none below."""
        display = self.display
        rows = [*display.history.top, *(display.buffer[y] for y in range(display.lines))]
        lines = [[row[x] for x in range(max(row, default=-1) + 1)] for row in rows]
        for line in lines:
            while (
                line and line[-1].data == " " and line[-1].bg == "default" and not line[-1].reverse
            ):
                line.pop()
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def text(self) -> str:
        return "\n".join("".join(cell.data for cell in line).rstrip() for line in self.lines())

    def framed(self) -> str:
        return "\n".join(f"| {line}" for line in self.text().splitlines())

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def environment_at(home: Path) -> dict[str, str]:
    """The same whatever terminal and settings the tests are run from."""
    told = ("PATH", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "MLX_ENABLE_TF32")
    return {key: value for key, value in ENVIRONMENT.items() if key in told} | {
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "HF_HUB_OFFLINE": "1",
    }
