"""Resolve a system prompt: a text, a file, or the name of a persona."""

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
