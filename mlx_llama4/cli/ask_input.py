"""Collect what is asked: a question, piped text, pictures."""

import contextlib
import glob
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import ImageError, PromptError

if TYPE_CHECKING:
    from mlx_llama4.prompt.image import PromptImage
    from mlx_llama4.prompt.processor import Processor

STANDARD_INPUT = "-"
MOST_IN_A_FOLDER = 256
MOST_PIPED_BYTES = 256 * 2**20
PICTURE_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")


def read_question(question: str | None, raw: bool, pictures: Sequence[str] = ()) -> str:
    """Return the text to ask: the piped text, a blank line, then the question. Without a question,
    or if it is -, the piped text alone.

    raw: the text will be continued as is, so drop the newline that `echo` adds. pictures: what -i
    names. If that is standard input, no text is piped in.
    """
    is_taken = STANDARD_INPUT in pictures
    if is_taken and question in (None, "-"):
        raise PromptError("-i - takes standard input for a picture; give the question in quotes")
    if question not in (None, "-"):
        document = _standard_input() if _is_piped() and not is_taken else ""
        text = terminal.as_typed(question)
        return f"{document.rstrip()}\n\n{text}" if document.strip() else text
    if sys.stdin.isatty():
        raise PromptError("give a question, or pipe one in")
    text = _standard_input()
    return text.removesuffix("\n") if raw else text


def find_pictures(typed: Sequence[str]) -> list[str | Path | bytes]:
    """Return what -i names: paths, http(s) and data: URLs, and what standard input holds.

    Patterns are expanded in case no shell did that, and a folder gives its pictures; both are
    sorted. Raises ImageError for a pattern or a folder without pictures.
    """
    found: list[str | Path | bytes] = []
    for name in typed:
        found += _named(name)
    return found


def _named(name: str) -> list[str | Path | bytes]:
    from mlx_llama4.prompt.picture_source import kind_of, path_of

    if name == STANDARD_INPUT:
        return [_piped_picture()]
    if not name:
        raise ImageError("-i has an empty name; give a picture's path or URL")
    kind = kind_of(name)
    path = Path(path_of(name) or name if kind == "file" else name)
    if kind in ("web", "data") or (kind == "file" and path_of(name) is None):
        return [name]
    with contextlib.suppress(RuntimeError):  # "~nobody"
        path = path.expanduser()
    if path.is_dir():
        return list(_in_folder(path))
    if path.exists() or kind == "file" or not set("*?[").intersection(name):
        return [path]
    matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
    if not matches:
        raise ImageError(f"{path} matches no file")
    return list(matches)


def _in_folder(folder: Path) -> list[Path]:
    """The pictures that lie in a folder itself, sorted by name."""
    from mlx_llama4.prompt.picture_source import SUFFIXES

    try:
        names = sorted(file.name for file in folder.iterdir())
    except OSError as failure:
        raise ImageError(f"cannot read {folder}: {failure.strerror or failure}") from None
    files = [folder / name for name in names if not name.startswith(".")]
    found = [file for file in files if file.suffix[1:].lower() in SUFFIXES and file.is_file()]
    if not found:
        raise ImageError(
            f"{folder} is a folder that holds no pictures (files that end with .png, .jpg and the "
            'like); -i "FOLDER/**/*.png" looks into the folders in it'
        )
    if len(found) > MOST_IN_A_FOLDER:
        raise ImageError(
            f"{folder} holds {len(found):,} pictures, and one question can be about "
            f'{MOST_IN_A_FOLDER} at most; choose some of them, e.g. with -i "{folder}/a*"'
        )
    return found


def _piped_picture() -> bytes:
    if sys.stdin.isatty():
        raise ImageError("-i - reads a picture from standard input; pipe one in")
    data = sys.stdin.buffer.read(MOST_PIPED_BYTES + 1)
    if not data:
        raise ImageError("-i -: standard input is empty; pipe one picture in, and name it once")
    if len(data) > MOST_PIPED_BYTES:
        raise ImageError(f"-i -: standard input has more than {MOST_PIPED_BYTES // 2**20} MiB")
    return data


def tiled(
    processor: "Processor", pictures: Sequence[str | Path | bytes], *, no_fetch: bool
) -> list["PromptImage"]:
    """Read and tile pictures, before a model takes memory.

    URLs were typed, so they may be of the user's own network.
    """
    from mlx_llama4.planning.machine import this_machine

    processor.picture_bytes = min(processor.picture_bytes, this_machine().usable)
    processor.fetching = replace(processor.fetching, allowed=not no_fetch, private=True)
    images = []
    for picture in pictures:
        is_url = isinstance(picture, str)
        with terminal.status("Fetching a picture") if is_url else contextlib.nullcontext():
            images.append(processor.tile(picture))
    return images


def _is_piped() -> bool:
    """Is standard input a pipe or a file? Anything else, such as /dev/null, has no text."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # closed, or not a real one
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _standard_input() -> str:
    text = sys.stdin.read()
    if text.encode("utf-8", "surrogateescape").startswith(PICTURE_BEGINNINGS):
        raise PromptError("standard input holds a picture, not a text; add -i - to ask about it")
    return terminal.as_typed(text).removeprefix("\ufeff")
