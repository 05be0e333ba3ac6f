"""Resolve a system prompt: a text, a file, or the name of a persona."""

import difflib
from pathlib import Path

from mlx_llama4.chat.personas import PERSONAS
from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import InputError


def read_system(given: str | None) -> str | None:
    """Return the system prompt, or None. Raises InputError for a file that cannot be read."""
    if not given:
        return None
    if given in PERSONAS:
        return PERSONAS[given]
    if not given.startswith("@"):
        _check_no_typo(given)
        return terminal.as_typed(given)
    path = Path(given[1:])
    try:
        text = path.expanduser().read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; convert it first, e.g. with iconv") from None
    except (OSError, RuntimeError, ValueError) as failure:
        reason = getattr(failure, "strerror", None) or failure
        raise InputError(f"cannot read the system prompt {path}: {reason}") from None
    if not text:
        raise InputError(f"{path}, given as the system prompt, is empty")
    return text


def _check_no_typo(given: str) -> None:
    """Raises InputError for a single word that is nearly a persona's name, or a file's."""
    if " " in given:
        return
    if near := difflib.get_close_matches(given.lower(), PERSONAS, n=1, cutoff=0.7):
        raise InputError(
            f"{given!r} is not a persona; did you mean {near[0]}? To give the word itself, add a "
            f"space: {given + ' '!r}"
        )
    if Path(given).suffix in (".txt", ".md") and Path(given).is_file():
        raise InputError(f"{given} is a file; write @{given} to give what is in it")
