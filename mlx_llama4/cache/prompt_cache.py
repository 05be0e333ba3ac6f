"""The caches of all layers, and which tokens and images they hold."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_llama4.cache.kv import KVCache

if TYPE_CHECKING:
    from mlx_llama4.prompt.prompt import PlacedImage


class PromptCache:
    """One cache per layer, all at the same position."""

    def __init__(self, layers: Sequence[KVCache]):
        self.layers = list(layers)
        self.ids = np.zeros(0, np.int32)  # the tokens seen
        self.images: tuple[PlacedImage, ...] = ()  # those with at least one token in `ids`

    @property
    def arrays(self) -> list[mx.array]:
        return [array for layer in self.layers for array in layer.arrays]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def reserve(self, tokens: int) -> None:
        """Announces that the layers will hold `tokens` in all, so that buffers grow only once."""
        for layer in self.layers:
            layer.reserve(tokens)

    def record(self, ids: np.ndarray, images: Sequence["PlacedImage"]) -> None:
        """Notes what was fed: as many of `ids` as the layers have seen.

        An interrupted step may leave some layers behind the others, or all of them one token ahead
        of `ids`. Then all layers go back to the last position that each of them can continue from.
        """
        position = min(len(ids), *(layer.offset for layer in self.layers))
        if any(layer.offset != position for layer in self.layers):
            position = self.rewind_point(position)
            for layer in self.layers:
                layer.rewind(position)
        self._keep(ids, images, position)

    def rewind_point(self, position: int) -> int:
        """The largest position, at most `position`, to which all layers can go back."""
        while (reached := min(layer.rewind_point(position) for layer in self.layers)) < position:
            position = reached
        return position

    def rewind(self, position: int) -> int:
        """Forgets the tokens from `position` on, and returns where the cache now ends: at
        `position` inside the current chunk, else at the border below it. The caller feeds the
        tokens in between again.
        """
        position = self.rewind_point(min(position, len(self.ids)))
        for layer in self.layers:
            layer.rewind(position)
        self._keep(self.ids, self.images, position)
        return position

    def common_prefix(self, ids: np.ndarray, images: Sequence["PlacedImage"]) -> int:
        """How many tokens at the beginning of a prompt are held, with the same images."""
        length = min(len(self.ids), len(ids))
        differing = np.flatnonzero(self.ids[:length] != ids[:length])
        position = int(differing[0]) if len(differing) else length
        for held, given in zip(self.images, images, strict=False):
            if held.start < position and held.image.digest != given.image.digest:
                return held.start
        return position

    def copy(self) -> "PromptCache":
        """An independent cache with the same contents; arrays are shared until written to."""
        copied = PromptCache([layer.copy() for layer in self.layers])
        copied.ids, copied.images = self.ids, self.images
        return copied

    def _keep(self, ids: np.ndarray, images: Sequence["PlacedImage"], position: int) -> None:
        self.ids = np.array(ids[:position], np.int32)
        self.images = tuple(image for image in images if image.start < position)
