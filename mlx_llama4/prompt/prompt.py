"""A prompt: token ids, and the pictures whose features go into their <|patch|> slots."""

from dataclasses import dataclass

import numpy as np

from mlx_llama4.config import Config
from mlx_llama4.errors import PromptError
from mlx_llama4.prompt.image import PromptImage


@dataclass(frozen=True, eq=False, repr=False)
class Prompt:
    """Token ids with the pictures that fill their slots."""

    ids: np.ndarray  # int32 [L]
    images: tuple[PromptImage, ...] = ()  # in the order of their <|patch|> slots

    @property
    def num_tiles(self) -> int:
        return sum(image.num_tiles for image in self.images)

    def __repr__(self) -> str:
        images = "".join(f", {image!r}" for image in self.images)
        return f"Prompt({len(self.ids):,} tokens{images})"


@dataclass(frozen=True)
class PlacedImage:
    """A picture and its place in a prompt."""

    image: PromptImage
    start: int  # position of its first <|patch|>
    stop: int  # position after its last <|patch|>


def place_images(prompt: Prompt, config: Config) -> list[PlacedImage]:
    """Locate each picture in the prompt.

    Raises PromptError if the number of <|patch|> differs from the number of features.
    """
    slots = np.flatnonzero(prompt.ids == config.image_token_id)
    per_tile = config.vision.tokens_per_tile if config.vision is not None else 0
    if len(slots) != (features := prompt.num_tiles * per_tile):
        raise PromptError(
            f"the prompt has {len(slots)} <|patch|> tokens but its images give {features} features"
        )
    placed, first = [], 0
    for image in prompt.images:
        last = first + image.num_tiles * per_tile - 1
        placed.append(PlacedImage(image, int(slots[first]), int(slots[last]) + 1))
        first = last + 1
    return placed


def check_length(prompt: Prompt, config: Config) -> None:
    """Raise PromptError if the prompt is empty or leaves no room for an answer."""
    context = config.text.max_position_embeddings
    if not len(prompt.ids):
        raise PromptError("the prompt is empty")
    if len(prompt.ids) >= context:
        raise PromptError(
            f"the prompt has {len(prompt.ids):,} tokens; this model's context holds {context:,}, "
            "answer included; shorten it or start a new conversation"
        )
