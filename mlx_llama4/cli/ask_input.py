"""What is asked: a question, what is piped in with it, pictures."""

import contextlib
import glob
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import ImageError, PromptError


def read_question(question: str | None, raw: bool) -> str:
    """The text to ask: what is piped in, then a blank line, then the question; without a question,
    or if that is -, what is piped in alone.

    raw: text that is to be gone on with, which the line end of `echo` would be in the way of.
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
    """Those paths, and what patterns among them stand for, where no shell did that: in the order
    of their names.

    Raises ImageError for a pattern that nothing matches.
    """
    found: list[Path] = []
    for path in typed:
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
    """Is standard input a pipe or a file? What else it may be, /dev/null say, holds no text."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # closed, or not a real one
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _standard_input() -> str:
    return terminal.as_typed(sys.stdin.read()).removeprefix("\ufeff")
