"""Prompts of random ids and pictures, for the tiny models."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache as memoized

import numpy as np

from mlx_llama4.config import GenerationConfig
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.image import TiledImage
from mlx_llama4.prompt.prompt import Prompt, place_images
from tests import tiny

NO_DEFAULTS = GenerationConfig(())


@dataclass(frozen=True)
class Letters:
    """Stands for a processor: each token is a letter."""

    end_tokens: Collection[int] = ()
    defaults: GenerationConfig = NO_DEFAULTS

    def token_bytes(self, token: int) -> bytes:
        return bytes([97 + token % 26])


class FixedImage(TiledImage):
    """An image whose pixel values are the goldens' own."""

    def pixel_values(self) -> np.ndarray:
        return self.table


def image_prompt(grids: list[tuple[int, int]]) -> Prompt:
    pixels, images, start = tiny.pixels(grids), [], 0
    for rows, columns in grids:
        tiles = pixels[start : start + rows * columns + (rows * columns > 1)]
        images.append(FixedImage(np.zeros(tiles.shape, np.uint8), (rows, columns), (1, 1), tiles))
        start += len(tiles)
    return Prompt(tiny.image_ids(grids)[0].astype(np.int32), tuple(images))


@dataclass(frozen=True, eq=False)
class Text:
    """What a prompt is made of, and what a single pass over it gives."""

    ids: tuple[int, ...] = ()
    images: tuple[FixedImage, ...] = ()

    def __add__(self, other: "Text") -> "Text":
        return Text(self.ids + other.ids, self.images + other.images)

    @property
    def prompt(self) -> Prompt:
        return Prompt(np.array(self.ids, np.int32), self.images)

    def cut(self, model: Llama4, position: int) -> "Text":
        """Up to a position, or to the picture that it falls into."""
        images = place_images(self.prompt, model.config)
        position = min([position, *(i.start for i in images if i.start < position < i.stop)])
        return Text(self.ids[:position], tuple(i.image for i in images if i.stop <= position))


@memoized
def picture(seed: int) -> Text:
    """A picture of one tile, or of two and the global one, and the ids that stand for it."""
    grid = ((1, 1), (1, 2))[seed % 2]
    pixels = tiny.pixels([grid], seed)
    tiles = np.full(pixels.shape, seed, np.uint8)  # what tells the pictures apart
    ids = tiny.image_ids([grid])[0]
    first, last = np.flatnonzero((ids == 310) | (ids == 311))
    return Text(tuple(ids[first : last + 1].tolist()), (FixedImage(tiles, grid, (1, 1), pixels),))


def words(seed: int, length: int) -> Text:
    return Text(tuple(tiny.text_ids(length, seed)[0].tolist()))
