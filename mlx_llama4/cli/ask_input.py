"""Collect what is asked: a question, piped text, pictures."""

import contextlib
import glob
import os
import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import ImageError, PromptError


def read_question(question: str | None, raw: bool) -> str:
    """Return the text to ask: the piped text, a blank line, then the question. Without a question,
    or if it is -, the piped text alone.

    raw: the text will be continued as is, so drop the newline that `echo` adds.
    """
    if question not in (None, "-"):
        document = _standard_input() if _is_piped() else ""
        text = terminal.as_typed(question)
        return f"{document.rstrip()}\n\n{text}" if document.strip() else text
    if sys.stdin.isatty():
        raise PromptError("give a question, or pipe one in")
    text = _standard_input()
    return text.removesuffix("\n") if raw else text


def find_pictures(typed: Sequence[Path]) -> list[Path]:
    """Return the paths, with patterns expanded in case no shell did that; matches are sorted.

    Raises ImageError for a pattern that matches nothing, and for a URL
    other than file://.
    """
    found: list[Path] = []
    for path in typed:
        if local := re.match(r"file:(/localhost)?(?=/)", str(path), re.IGNORECASE):
            path = Path(unquote(str(path)[local.end() :]))
        if scheme := re.match(r"(https?):/|(data):", str(path), re.IGNORECASE):
            name = (scheme[1] or scheme[2]).lower()
            raise ImageError(f"{name}: URLs of pictures are not read; give the path of a file")
        with contextlib.suppress(RuntimeError):  # "~nobody"
            path = path.expanduser()
        if path.exists() or not set("*?[").intersection(str(path)):
            found.append(path)
            continue
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
        if not matches:
            raise ImageError(f"{path} matches no file")
        found += matches
    return found


def _is_piped() -> bool:
    """Is standard input a pipe or a file? Anything else, such as /dev/null, has no text."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # closed, or not a real one
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _standard_input() -> str:
    return terminal.as_typed(sys.stdin.read()).removeprefix("\ufeff")
