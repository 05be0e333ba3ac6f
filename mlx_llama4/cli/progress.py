"""Progress of long work on bytes: a bar on a terminal, now and then a plain line in a log."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from mlx_llama4.cli import terminal

SECONDS_BETWEEN_LINES = 10.0

# (what is being done, bytes done, bytes in all, of those done the ones that were there before)
Update = Callable[[str, int, int, int], None]


@contextlib.contextmanager
def byte_progress() -> Iterator[Update]:
    if not sys.stderr.isatty():
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
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = None
        doing = ""

        def update(what: str, done: int, total: int, before: int) -> None:
            nonlocal task, doing
            if what != doing:
                if task is not None:
                    progress.remove_task(task)
                # What was there before must not count as speed.
                doing, task = what, progress.add_task(what, total=total - before)
            progress.update(task, completed=done - before)

        yield update


class _Lines:
    def __init__(self) -> None:
        self.doing = ""
        self.started = self.said = 0.0

    def update(self, what: str, done: int, total: int, before: int) -> None:
        from mlx_llama4.memory import human_bytes

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


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes >= 2 else f"{60 * minutes + seconds} s"
