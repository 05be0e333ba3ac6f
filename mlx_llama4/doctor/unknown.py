"""Record what could not be found out, and why, in words that name nothing private."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mlx_llama4.errors import Llama4Error

Found = TypeVar("Found")
LONGEST = 120


@dataclass(frozen=True)
class Unknown:
    why: str

    def __str__(self) -> str:
        return f"unknown: {self.why}"


def attempt(find: Callable[[], Found]) -> Found | Unknown:
    """Return what `find` returns, or Unknown if it fails: one failure must not end the report."""
    try:
        return find()
    except Exception as error:
        return Unknown(reason(error))


def reason(error: Exception) -> str:
    """Why an error happened: the system's own words, or the error's without paths and quotes.

    Our own errors begin with folders' names, so only their kind is given.
    """
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, Llama4Error):
        return type(error).__name__
    words = re.split(r"\S*[/\\~\"'`“]", str(error), maxsplit=1)[0]
    words = " ".join(words.split())[:LONGEST].strip()
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
