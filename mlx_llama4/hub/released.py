"""The short names of the family's releases: `scout`, `maverick` and `guard`.

For converting, a name means Meta's own repository; for running, a ready-made 4-bit conversion, if
one is known. An existing path of that name wins over both.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Purpose = Literal["run", "convert", "inspect"]
READY_MADE_BITS = 4


@dataclass(frozen=True)
class Release:
    """The name for people, and the repositories, of one instruction-tuned model."""

    title: str
    original: str  # bfloat16, by Meta, behind its licence
    ready_made: str | None  # READY_MADE_BITS bits, in MLX's layout, free to download

    @property
    def short_title(self) -> str:
        return self.title.removeprefix("Llama 4 ")


RELEASES = {
    "scout": Release(
        "Llama 4 Scout",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        "mlx-community/Llama-4-Scout-17B-16E-Instruct-4bit",
    ),
    "maverick": Release(
        "Llama 4 Maverick",
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
        "mlx-community/Llama-4-Maverick-17B-128E-Instruct-4bit",
    ),
    "guard": Release("Llama Guard 4", "meta-llama/Llama-Guard-4-12B", None),
}


def is_release(name: str | Path) -> bool:
    """Does `name` mean a release, rather than a file or folder of that name?"""
    return str(name) in RELEASES and not Path(name).exists()


def full_name(name: str | Path, purpose: Purpose = "run") -> str | Path:
    """The repository that a short name leads to; any other name as it is."""
    if not is_release(name):
        return name
    release = RELEASES[str(name)]
    ready_made = None if purpose == "convert" else release.ready_made
    return ready_made or release.original


def is_ready_made(name: str | Path) -> bool:
    """Does `name` mean a release that is on the hub in READY_MADE_BITS bits?"""
    return is_release(name) and RELEASES[str(name)].ready_made is not None
