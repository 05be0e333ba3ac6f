"""The short names of the family's releases: `scout` and `maverick`.

For converting, a name means Meta's own repository; for running, a ready-made 4-bit conversion. An
existing path of that name wins over both.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Purpose = Literal["run", "convert", "inspect"]
READY_MADE_BITS = 4


@dataclass(frozen=True)
class Release:
    """The repositories of one instruction-tuned model."""

    original: str  # bfloat16, by Meta, behind its licence
    ready_made: str  # READY_MADE_BITS bits, in MLX's layout, free to download


RELEASES = {
    "scout": Release(
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        "mlx-community/Llama-4-Scout-17B-16E-Instruct-4bit",
    ),
    "maverick": Release(
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
        "mlx-community/Llama-4-Maverick-17B-128E-Instruct-4bit",
    ),
}


def is_release(name: str | Path) -> bool:
    """Does `name` mean a release, rather than a file or folder of that name?"""
    return str(name) in RELEASES and not Path(name).exists()


def full_name(name: str | Path, purpose: Purpose = "run") -> str | Path:
    """The repository that a short name leads to; any other name as it is."""
    if not is_release(name):
        return name
    release = RELEASES[str(name)]
    return release.original if purpose == "convert" else release.ready_made
