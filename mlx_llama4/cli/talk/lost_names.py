"""Tell the user which names of pictures in a message lead nowhere.

The model sees such a name as text, and would invent what the picture shows.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import one_line

MOST_LINES = 3  # about one message, which may be a pasted page
SHOWN_CHARACTERS = 100  # of a name


def say_lost(names: Sequence[str], reasons: Sequence[str] = ()) -> None:
    """Say it of each name, and of what the reasons are about."""
    lines = [*reasons, *map(_why_lost, names)]
    for line in lines[:MOST_LINES]:
        terminal.aside(f"[{line}; sent as text]")
    if len(lines) > MOST_LINES:
        terminal.aside(f"[{len(lines) - MOST_LINES:,} more lead nowhere; sent as text]")


def _why_lost(name: str) -> str:
    short = one_line(name, SHOWN_CHARACTERS)
    if "://" in name and not name.lower().startswith("file:"):
        return f"{short}: only http and https URLs are fetched"
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # "~nobody", a NUL, too long
        if Path(name).expanduser().is_dir():
            return f"{short} is a folder, not a picture"
    return f"{short}: no such file"
