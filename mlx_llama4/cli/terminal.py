"""All that the commands print, and how they end.

Answers go to standard output, everything else to standard error, so that output can be piped.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import typer

from mlx_llama4.errors import Llama4Error

Command = TypeVar("Command", bound=Callable[..., Any])

INTERRUPTED = 130  # what shells report for Ctrl-C
DEBUG_VARIABLE = "MLX_LLAMA4_DEBUG"

# A model may be talked into emitting escape sequences; a terminal must not act on them.
CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
del CONTROLS[ord("\n")], CONTROLS[ord("\t")]


def reports_errors(command: Command) -> Command:
    """Turn what a command raises into one line and an exit code; no traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            note("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader has gone; keep Python from complaining again when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Llama4Error as error:
            note(f"error: {error}")
            raise typer.Exit(error.exit_code) from None
        except Exception as error:
            if os.environ.get(DEBUG_VARIABLE):
                raise
            note(f"error: unexpected {type(error).__name__}: {error}")
            note(f"set {DEBUG_VARIABLE}=1 for the traceback, and please report it")
            raise typer.Exit(1) from None

    return wrapped  # type: ignore[return-value]


def note(text: str) -> None:
    """A line for the user, on standard error."""
    print(text, file=sys.stderr, flush=True)


def line(text: str = "") -> None:
    """A line of the result, on standard output."""
    print(text, flush=True)


def stream(text: str) -> None:
    """A piece of an answer, on standard output, at once."""
    sys.stdout.write(text.translate(CONTROLS) if sys.stdout.isatty() else text)
    sys.stdout.flush()


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner on standard error while something takes its time, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


@contextlib.contextmanager
def byte_progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; yields a function to be told (bytes done, bytes in all)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def table(rows: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> None:
    """Aligned columns on standard output; the columns numbered in `right` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        line("  " + "  ".join(cells).rstrip())


def human_bytes(count: float) -> str:
    """Decimal units, as disks and macOS count."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
