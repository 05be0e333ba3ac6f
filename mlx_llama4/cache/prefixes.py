"""Beginnings of prompts that were read before, kept for prompts to come.

At a chunk border chunked layers need no past, so what a prompt's first chunks leave behind is
the global layers' keys and values alone. They are kept by the chunk, each under a key that tells
all tokens and pictures from the prompt's first to the chunk's last:

    prompt       [chunk 0][chunk 1][chunk 2][rest]
    kept          block 0  block 1  block 2

What a running conversation holds is not kept a second time: blocks are made of what it drops.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_llama4.cache.chunked import ChunkedKVCache
from mlx_llama4.cache.kv import Rows
from mlx_llama4.cache.least_recently_used import LeastRecentlyUsed
from mlx_llama4.cache.prompt_cache import PromptCache

if TYPE_CHECKING:
    from mlx_llama4.prompt.processor import PlacedImage

Block = dict[int, Rows]  # layer → its rows of one chunk, for global layers


class PrefixStore:
    """Blocks of at most `budget` bytes in all; the longest unused go first.

    For one model and one way of packing. chunk_size None: there are no borders, nothing is kept.
    """

    def __init__(self, chunk_size: int | None, budget: int):
        self.chunk_size = chunk_size
        self._blocks: LeastRecentlyUsed[bytes, Block] = LeastRecentlyUsed(budget)

    @property
    def nbytes(self) -> int:
        return self._blocks.nbytes

    def fit(self, cache: PromptCache, ids: np.ndarray, images: Sequence["PlacedImage"]) -> int:
        """Have `cache` hold as much as can be of the beginning of a prompt; returns how much.

        At least one of the prompt's tokens is left to be fed. What the cache held beyond is kept
        here, as far as it is whole chunks.
        """
        wanted = min(cache.common_prefix(ids, images), len(ids) - 1)
        position = cache.rewind_point(wanted)
        if not self.chunk_size:
            return cache.rewind(position)
        self._keep_dropped(cache, position)
        first = position // self.chunk_size
        found = []
        for key in self._keys(ids[:-1], images)[first:]:
            if (block := self._blocks.get(key)) is None:
                break
            found.append((key, block))
        if not found:
            return cache.rewind(position)
        cache.rewind(first * self.chunk_size)
        for _, block in found:
            self._append(cache, block)
        for key, _ in reversed(found):  # the first are what the others need: they must go last
            self._blocks.get(key)
        cache.record(ids, images)
        return len(cache.ids)

    def _keep_dropped(self, cache: PromptCache, position: int) -> None:
        """Make blocks of the whole chunks that `cache` is about to drop."""
        first = position // self.chunk_size
        keys = self._keys(cache.ids, cache.images)[first:]
        fitting: list[tuple[bytes, Block, int]] = []
        room = self._blocks.budget
        for index, key in enumerate(keys, first):
            block = self._block(cache, index)
            nbytes = sum(row.nbytes for rows in block.values() for row in rows.values())
            if (room := room - nbytes) < 0:
                break  # never at the cost of the chunks before, without which it is of no use
            fitting.append((key, block, nbytes))
        for key, block, nbytes in reversed(fitting):
            if self._blocks.get(key) is None:
                mx.eval([row for rows in block.values() for row in rows.values()])
                self._blocks.put(key, block, nbytes)

    def _block(self, cache: PromptCache, index: int) -> Block:
        """Copies, made when they are evaluated: the buffer that they are cut from shall go."""
        start, stop = index * self.chunk_size, (index + 1) * self.chunk_size
        return {
            number: {name: mx.contiguous(row) for name, row in layer.rows(start, stop).items()}
            for number, layer in enumerate(cache.layers)
            if not isinstance(layer, ChunkedKVCache)
        }

    def _append(self, cache: PromptCache, block: Block) -> None:
        for number, layer in enumerate(cache.layers):
            if isinstance(layer, ChunkedKVCache):
                layer.skip_to(layer.offset + self.chunk_size)
            else:
                layer.append(block[number])
        mx.eval(cache.arrays)

    def _keys(self, ids: np.ndarray, images: Sequence["PlacedImage"]) -> list[bytes]:
        """Of each whole chunk of `ids`: a hash of it, its pictures and the key before."""
        keys, key = [], b""
        for stop in range(self.chunk_size, len(ids) + 1, self.chunk_size):
            start = stop - self.chunk_size
            digest = hashlib.sha256(key + np.asarray(ids[start:stop], np.int32).tobytes())
            for image in images:
                if image.start < stop and image.stop > start:
                    digest.update(f"{image.start} {image.image.digest}".encode())
            key = digest.digest()
            keys.append(key)
        return keys
