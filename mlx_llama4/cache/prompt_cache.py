"""The caches of all layers together with what they hold: which tokens, which images."""

from collections.abc import Sequence

import numpy as np

from mlx_llama4.cache.kv import KVCache


class PromptCache:
    """layers: one cache per layer, in step. ids: int32, the tokens that they have seen.
    image_digests: of the images among them, in order.
    """

    def __init__(self, layers: Sequence[KVCache]):
        self.layers = list(layers)
        self.ids = np.zeros(0, np.int32)
        self.image_digests: tuple[str, ...] = ()

    def record(self, ids: np.ndarray, image_digests: Sequence[str]) -> bool:
        """Note what was fed: as many of `ids` as the layers have seen.

        False if the layers are out of step, because a step was interrupted half-way: then the
        cache is of no more use.
        """
        offsets = {layer.offset for layer in self.layers}
        if len(offsets) > 1:
            return False
        self.ids = ids[: offsets.pop()].copy()
        self.image_digests = tuple(image_digests)
        return True

    def rewind_to_common_prefix(self, ids: np.ndarray, image_digests: Sequence[str]) -> bool:
        """Keep what is also the beginning of a prompt of `ids`, which may yet go on.

        At least one token is left to be fed. False if the layers cannot go back that far, or
        images differ; then a fresh cache is needed.
        """
        if self.image_digests != tuple(image_digests)[: len(self.image_digests)]:
            return False
        length = min(len(self.ids), len(ids) - 1)
        differing = np.flatnonzero(self.ids[:length] != ids[:length])
        position = int(differing[0]) if len(differing) else length
        if any(position < layer.earliest_rewind for layer in self.layers):
            return False
        for layer in self.layers:
            layer.rewind(position)
        self.ids = self.ids[:position]
        return True
