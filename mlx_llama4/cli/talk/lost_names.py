"""Tell the user which names in a message lead nowhere.

The model sees such a name as text, and would invent what the picture or the file shows.
"""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import one_line

MOST_LINES = 3  # about one message, which may be a pasted page
SHOWN_CHARACTERS = 100  # of a name
# A longer message is a pasted text, whose paths may be of any machine.
TYPED_CHARACTERS = 300
# A path that begins like one and has an ending: a file that was dropped into the terminal, say.
FILE = re.compile(
    r"""(?:(?<=[\s(])|^)(?:'(?P<single>[~.]{0,2}/[^'\n]+)'|"(?P<double>[~.]{0,2}/[^"\n]+)\""""
    r"""|(?P<bare>(?:~|\.{1,2})?/(?:\\.|[^\s\\'"])*\.[A-Za-z]\w{0,4})(?=[\s.,;:!?)]|$))"""
)


def say_lost(names: Sequence[str], reasons: Sequence[str] = ()) -> None:
    """Say it of each name, and of what the reasons are about."""
    lines = [*reasons, *map(_why_lost, names)]
    for line in lines[:MOST_LINES]:
        terminal.aside(f"[{line}; sent as text]")
    if len(lines) > MOST_LINES:
        terminal.aside(f"[{len(lines) - MOST_LINES:,} more lead nowhere; sent as text]")


def files_in(text: str) -> list[str]:
    """The files that a typed message names and that are not pictures, each once."""
    from mlx_llama4.prompt.picture_source import SUFFIXES

    if len(text) > TYPED_CHARACTERS:
        return []
    found = (
        match["single"] or match["double"] or re.sub(r"\\(.)", r"\1", match["bare"])
        for match in FILE.finditer(text)
    )
    return [
        name
        for name in dict.fromkeys(found)
        if re.fullmatch(r"\w*[A-Za-z]\w*", ending := name.rpartition(".")[2])
        and ending.lower() not in SUFFIXES
    ]


def _why_lost(name: str) -> str:
    short = one_line(name, SHOWN_CHARACTERS)
    if "://" in name and not name.lower().startswith("file:"):
        return f"{short}: only http and https URLs are fetched"
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # "~nobody", a NUL, too long
        path = Path(name).expanduser()
        if path.is_dir():
            return f"{short} is a folder, not a picture"
        if path.exists():
            return f"{short} is not a picture, and nothing else is attached"
    return f"{short}: no such file"
