"""--draft and /set draft: whether and how to guess tokens ahead."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mlx_llama4.generation.drafting import MakeDrafter


class Draft(StrEnum):
    off = "off"
    ngram = "ngram"


Drafts = Annotated[
    Draft,
    typer.Option(
        "--draft",
        help="ngram: where the answer repeats what was said, check several tokens at once. The "
        "answer stays the same.",
    ),
]


def drafter(draft: Draft) -> "MakeDrafter | None":
    from mlx_llama4.generation.drafting import NgramDrafter

    return NgramDrafter if draft == Draft.ngram else None


def drafts_with(make: "MakeDrafter | None") -> Draft:
    """The setting that gives this drafter: the inverse of `drafter`."""
    return Draft.off if make is None else Draft.ngram
