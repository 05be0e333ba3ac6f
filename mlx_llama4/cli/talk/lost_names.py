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
# What begins like a path: in quotes, as a file: URL, or with a backslash before each space.
PATH = re.compile(
    r"""(?:(?<=[\s(])|^)(?:'(?P<single>[~.]{0,2}/[^'\n]+)'|"(?P<double>[~.]{0,2}/[^"\n]+)\""""
    r"""|(?P<bare>(?:~|\.{1,2}|file:/?)?/(?:\\.|[^\s\\'"])+))"""
)
ENDING = re.compile(r"\w*[A-Za-z]\w*")


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
        match["single"]
        or match["double"]
        or re.sub(r"\\(.)", r"\1", match["bare"].rstrip(".,;:!?)"))
        for match in PATH.finditer(text)
    )
    return [
        name
        for name in dict.fromkeys(found)
        if (ending := name.rpartition(".")[2]).lower() not in SUFFIXES
        and (ENDING.fullmatch(ending) or _is_meant(name))
    ]


def _is_meant(name: str) -> bool:
    """Is a name without an ending that of a file, or of one that a folder of this machine lacks?

    In "and/or" and "/v1.2" nothing is.
    """
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        path = _path(name)
        is_lost = not path.exists() and path.parent.is_dir() and path.parent != Path("/")
        return path.is_file() or is_lost
    return False


def _path(name: str) -> Path:
    from mlx_llama4.prompt.picture_source import path_of

    return Path(path_of(name) or name).expanduser()


def _why_lost(name: str) -> str:
    short = one_line(name, SHOWN_CHARACTERS)
    if "://" in name and not name.lower().startswith("file:"):
        return f"{short}: only http and https URLs are fetched"
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # "~nobody", a NUL, too long
        path = _path(name)
        if path.is_dir():
            return f"{short} is a folder, not a picture"
        if path.exists():
            return f"{short} is not a picture, and nothing else is attached"
    return f"{short}: no such file"
