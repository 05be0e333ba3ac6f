"""Print what commands say, and end them.

Answers go to standard output, everything else to standard error, so that output can be piped.
"""

import contextlib
import functools
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import typer

from mlx_llama4.errors import UNPRINTABLE, Llama4Error, PromptError, one_line

Command = TypeVar("Command", bound=Callable[..., Any])

INTERRUPTED = 130  # what shells report for Ctrl-C
DEBUG_VARIABLE = "MLX_LLAMA4_DEBUG"
SECOND_COLUMN = re.compile(r"\S+(?: \S+)*  +(?=\S)")

# A model may be tricked into emitting escape sequences; a terminal must not act on them.
CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
del CONTROLS[ord("\n")], CONTROLS[ord("\t")]
UNSAFE = re.compile(rf"(?![\n\t]){UNPRINTABLE.pattern}")


def reports_errors(command: Command) -> Command:
    """Turn what a command raises into one line and an exit code, without a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.BadParameter, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            note("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except Llama4Error as error:
            note(f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        except OSError as failure:
            if failure.filename is None:  # standard output itself
                raise
            note(f"error: {failure.strerror}: {one_line(str(failure.filename))}")
            raise typer.Exit(1) from None
        except Exception as error:
            unexpected(error)
            raise typer.Exit(1) from None

    return wrapped  # type: ignore[return-value]


def unexpected(error: Exception) -> None:
    """Report an error that should not have happened; re-raise it when debugging."""
    if os.environ.get(DEBUG_VARIABLE):
        raise error
    note(f"error: unexpected {type(error).__name__}: {one_line(str(error))}")
    note(f"set {DEBUG_VARIABLE}=1 for the traceback, and please report it")


def import_mlx() -> None:
    """Import MLX with Ctrl-C held back: its extension module aborts if it is interrupted."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        import mlx.nn  # noqa: F401
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def note(text: str) -> None:
    """Print a line for the user, on standard error, without control characters."""
    _note(text.translate(CONTROLS))


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def aside(text: str) -> None:
    """Print a remark beside a conversation, on standard error, faint if the terminal can."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", None)
    text = wrapped(text.translate(CONTROLS))
    _note(text if plain or not sys.stderr.isatty() else f"\x1b[2m{text}\x1b[0m")


def wrapped(text: str) -> str:
    """Break a long text between words, where a terminal would break it anywhere.

    If it has two columns, further lines start under the second. Do not use it for text that users
    will copy in one piece.
    """
    if not sys.stderr.isatty():
        return text
    width = shutil.get_terminal_size().columns
    lines = []
    for line in text.split("\n"):
        first = SECOND_COLUMN.match(line)
        under = first.end() if first and first.end() <= width // 2 else 4 if first else 0
        lines += textwrap.wrap(
            line, width, subsequent_indent=" " * under, break_on_hyphens=False
        ) or [""]  # fmt: skip
    return "\n".join(lines)


def line(text: str = "") -> None:
    """Print a line of the result, on standard output.

    What moves a cursor or cannot be encoded is escaped as in JSON, so JSON keeps its meaning.
    """
    print(UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text), flush=True)


def as_typed(text: str) -> str:
    """Decode text that the user typed, in case the locale could not decode all of its bytes.

    Raises PromptError if they are not UTF-8.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise PromptError("the text is not UTF-8; convert it first, e.g. with iconv") from None


@contextlib.contextmanager
def keys_unseen() -> Iterator[None]:
    """Hide what is typed during an answer. The next prompt gets it; a question whether a tool may
    run does not.
    """
    if not sys.stdin.isatty():
        yield
        return
    import termios

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    unseen = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(keyboard, termios.TCSADRAIN, unseen)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # it has been closed
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def forget_typed() -> None:
    """Discard what was typed before a question appeared, since it cannot be an answer."""
    if sys.stdin.isatty():
        import termios

        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


@contextlib.contextmanager
def no_signals() -> Iterator[None]:
    """Hold back signals, so that the work in here is done to its end."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """Show a spinner during slow work, on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(text)):
        yield


def table(rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> None:
    """Print aligned columns on standard output; those numbered in `right` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        line("  " + "  ".join(cells).rstrip())
