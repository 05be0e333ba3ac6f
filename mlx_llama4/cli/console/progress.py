"""Show the progress of long work: a bar on a terminal, an occasional plain line in a log."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mlx_llama4.cli.console import terminal

if TYPE_CHECKING:
    from rich.progress import TaskID

SECONDS_BETWEEN_LINES = 10.0

# (what is being done, bytes done, bytes in all, bytes already done before the start)
Update = Callable[[str, int, int, int], None]


@contextlib.contextmanager
def byte_progress(transient: bool = False) -> Iterator[Update]:
    """Show progress in bytes. transient: clear it from the terminal at the end."""
    if not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", None):
        yield _Lines().update
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=transient) as progress:
        task: TaskID | None = None
        doing = ""

        def update(what: str, done: int, total: int, before: int) -> None:
            nonlocal task, doing
            if task is None or what != doing:
                if task is not None:
                    progress.remove_task(task)
                # Bytes from an earlier run must not count as speed.
                doing, task = what, progress.add_task(what, total=total - before)
            progress.update(task, completed=done - before)

        yield update


class _Lines:
    def __init__(self) -> None:
        self.doing = ""
        self.started = self.said = 0.0

    def update(self, what: str, done: int, total: int, before: int) -> None:
        from mlx_llama4.units import human_bytes

        now = time.monotonic()
        if what != self.doing:
            self.doing, self.started, self.said = what, now, now
        if now - self.said < SECONDS_BETWEEN_LINES:
            return
        self.said = now
        speed = (done - before) / max(now - self.started, 1e-9)
        left = f", {_duration((total - done) / speed)} left" if speed else ""
        terminal.note(
            f"{what}: {human_bytes(done)} of {human_bytes(total)} ({done / max(total, 1):.0%}), "
            f"{human_bytes(speed)}/s{left}"
        )


class ReadingProgress:
    """Shows how much of a long prompt has been read, in a line that is overwritten."""

    BAR = 20

    def __init__(self) -> None:
        self._started = self._said = time.monotonic()
        self._seen: list[tuple[int, float]] = []  # tokens read since the start, seconds it took
        self._first: int | None = None
        self._shown = False
        self._is_live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def update_pictures(self, done: int, total: int) -> None:
        """Show that `done` of `total` pictures are encoded and the next one is under way."""
        text = f"{done + 1} of {total} pictures"
        if self._is_live:
            self._show(f"Looking {self._bar(done, total)} {text}")
        elif total > 1 and time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            terminal.note(f"Looking at the pictures: {text}")

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` tokens are in the cache."""
        now = time.monotonic()
        if self._first is None:
            # How much the cache held at the start is unknown; count from the first step.
            self._first = done
            self._started = now
        else:
            self._seen.append((done - self._first, now - self._started))
        if self._is_live:
            self._show(f"Reading {self._bar(done, total)} {self._text(done, total)}")
        elif now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            terminal.note(f"Reading the prompt: {self._text(done, total)}")

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False

    def _show(self, text: str) -> None:
        self._shown = True
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\x1b[K{text[:width]}")
        sys.stderr.flush()

    def _bar(self, done: int, total: int) -> str:
        filled = done * self.BAR // total
        return "█" * filled + "░" * (self.BAR - filled)

    def _text(self, done: int, total: int) -> str:
        text = f"{done:,} of {total:,} tokens"
        if not self._seen:
            return text
        tokens, seconds = self._seen[-1]
        rate = tokens / max(seconds, 1e-9)
        first = self._first or 0
        left = time_left(self._seen, done - first, total - first)
        return f"{text}, {rate:,.0f} tokens/s, {_duration(left)} left"


def time_left(seen: list[tuple[int, float]], done: int, total: int) -> float:
    """Estimate the seconds until `total` tokens are read, when `done` have been.

    Each token takes longer than the one before, because it attends to one more. So n tokens take
    a n + b n² seconds, fitted through the last point seen and the one half-way to it.
    """
    tokens, seconds = seen[-1]
    half, half_seconds = seen[(len(seen) - 1) // 2]
    growth = 0.0
    if tokens > half:
        growth = max((seconds / tokens - half_seconds / half) / (tokens - half), 0.0)
    base = max(seconds / tokens - growth * tokens, 0.0)
    return max(base * total + growth * total**2 - seconds, 0.0)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes >= 2 else f"{60 * minutes + seconds} s"
