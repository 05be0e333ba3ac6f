"""Keeps the beginnings of prompts that were read, for later prompts that begin the same.

At a chunk border chunked layers need no past, so all that a prompt's first chunks leave behind is
the global layers' keys and values. The store keeps them chunk by chunk. A chunk's key is a hash of
all tokens and pictures from the prompt's first token to the chunk's last:

    prompt       [chunk 0][chunk 1][chunk 2][rest]
    kept          block 0  block 1  block 2  tail, if asked for

Blocks are made of what a conversation drops, so nothing that it still holds is kept twice. A tail
has the rest for all layers: the end of a document lies at no border, and a tail brings it back.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_llama4.cache.chunked import ChunkedKVCache
from mlx_llama4.cache.kv import Rows
from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.least_recently_used import LeastRecentlyUsed

if TYPE_CHECKING:
    from mlx_llama4.prompt.prompt import PlacedImage

Block = dict[int, Rows]  # layer → its rows: a chunk's for global layers, a tail's for all layers


class PrefixStore:
    """At most `budget` bytes of blocks and tails; the least recently used go first.

    A store serves one model and one KV quantization. Without borders (chunk_size None) it keeps
    nothing.
    """

    def __init__(self, chunk_size: int | None, budget: int):
        self.chunk_size, self.budget = chunk_size or 0, budget  # 0: no borders
        self._blocks: LeastRecentlyUsed[bytes, Block] = LeastRecentlyUsed(budget)
        self._tails: dict[bytes, set[int]] = {}  # key of the chunk before → tokens of its tails

    @property
    def nbytes(self) -> int:
        return self._blocks.nbytes

    def fit(self, cache: PromptCache, ids: np.ndarray, images: Sequence["PlacedImage"]) -> int:
        """Makes `cache` hold as much as possible of a prompt's beginning; returns how many tokens.

        At least one token of the prompt is left to feed. Whole chunks that the cache held beyond
        that beginning are kept here.
        """
        start, blocks = self._beginning(cache, ids, images)
        if self.chunk_size:
            self._keep_dropped(cache, start)
        cache.rewind(start)
        for block in blocks:
            self._append(cache, block)
        if blocks:
            cache.record(ids, images)
        return start + sum(map(_tokens, blocks))

    def reach(self, cache: PromptCache, ids: np.ndarray, images: Sequence["PlacedImage"]) -> int:
        """What `fit` would return, without changing anything."""
        start, blocks = self._beginning(cache, ids, images)
        return start + sum(map(_tokens, blocks))

    def _beginning(
        self, cache: PromptCache, ids: np.ndarray, images: Sequence["PlacedImage"]
    ) -> tuple[int, list[Block]]:
        """How many tokens of the prompt's beginning to keep in `cache`, and the blocks to append,
        the first of them at a border.
        """
        position = cache.rewind_point(min(cache.common_prefix(ids, images), len(ids) - 1))
        if not self.chunk_size:
            return position, []
        first = position // self.chunk_size
        keys = self._keys(ids[:-1], images)
        blocks = self._found(keys[first:])
        border = (first + len(blocks)) * self.chunk_size
        tail = self._longest_tail(keys[: first + len(blocks)], ids[border:-1], images)
        if tail is not None and border + _tokens(tail) > position:
            blocks.append(tail)
        return (first * self.chunk_size if blocks else position), blocks

    def keep_tail(self, cache: PromptCache) -> None:
        """Keeps the end of `cache` as it is now, so that later prompts can go back to it."""
        if not self.chunk_size or len(cache.ids) % self.chunk_size == 0:
            return
        keys = self._keys(cache.ids, cache.images)
        before, border = keys[-1] if keys else b"", len(keys) * self.chunk_size
        key = self._key(before, cache.ids[border:], border, len(cache.ids), cache.images)
        tail: Block = {
            number: {name: mx.contiguous(row) for name, row in rows.items()}
            for number, layer in enumerate(cache.layers)
            for rows in [layer.rows(border, len(cache.ids))]
        }
        if _nbytes(tail) > self._blocks.budget:
            return
        self._put(key, tail)
        self._tails.setdefault(before, set()).add(len(cache.ids) - border)

    def _found(self, keys: Sequence[bytes]) -> list[Block]:
        """The blocks of these chunks, up to the first that is missing."""
        found: list[Block] = []
        for key in keys:
            if (block := self._blocks.get(key)) is None:
                break
            found.append(block)
        for key in reversed(keys[: len(found)]):  # later chunks need the first: it must go last
            self._blocks.get(key)
        return found

    def _longest_tail(
        self, keys: Sequence[bytes], ids: np.ndarray, images: Sequence["PlacedImage"]
    ) -> Block | None:
        """keys: of the chunks before; ids: the tokens after them."""
        before, border = keys[-1] if keys else b"", len(keys) * self.chunk_size
        for length in sorted(self._tails.get(before, ()), reverse=True):
            if length <= len(ids):
                key = self._key(before, ids, border, border + length, images)
                if (tail := self._blocks.get(key)) is not None:
                    return tail
        return None

    def _keep_dropped(self, cache: PromptCache, position: int) -> None:
        """Makes blocks of the whole chunks that `cache` is about to drop."""
        first = position // self.chunk_size
        keys = self._keys(cache.ids, cache.images)[first:]
        fitting: list[tuple[bytes, Block]] = []
        room = self._blocks.budget
        for index, key in enumerate(keys, first):
            block = self._block(cache, index)
            if (room := room - _nbytes(block)) < 0:
                break  # of no use without the chunks before it, so it must not displace them
            fitting.append((key, block))
        for key, block in reversed(fitting):
            if self._blocks.get(key) is None:
                self._put(key, block)

    def _put(self, key: bytes, block: Block) -> None:
        mx.eval([row for rows in block.values() for row in rows.values()])
        self._blocks.put(key, block, _nbytes(block))

    def _block(self, cache: PromptCache, index: int) -> Block:
        """Lazy copies, so that the buffer they are cut from can be freed."""
        start, stop = index * self.chunk_size, (index + 1) * self.chunk_size
        return {
            number: {name: mx.contiguous(row) for name, row in layer.rows(start, stop).items()}
            for number, layer in enumerate(cache.layers)
            if not isinstance(layer, ChunkedKVCache)
        }

    def _append(self, cache: PromptCache, block: Block) -> None:
        for number, layer in enumerate(cache.layers):
            if isinstance(layer, ChunkedKVCache) and number not in block:
                layer.skip_to(layer.offset + self.chunk_size)
            else:
                layer.append(block[number])
        mx.eval(cache.arrays)

    def _keys(self, ids: np.ndarray, images: Sequence["PlacedImage"]) -> list[bytes]:
        """The key of each whole chunk of `ids`."""
        keys: list[bytes] = []
        for stop in range(self.chunk_size, len(ids) + 1, self.chunk_size):
            start = stop - self.chunk_size
            keys.append(self._key(keys[-1] if keys else b"", ids[start:stop], start, stop, images))
        return keys

    def _key(
        self,
        before: bytes,
        ids: np.ndarray,
        start: int,
        stop: int,
        images: Sequence["PlacedImage"],
    ) -> bytes:
        """A hash of the key before, tokens start … stop - 1 (`ids` begins there), and pictures."""
        digest = hashlib.sha256(before + np.asarray(ids[: stop - start], np.int32).tobytes())
        for image in images:
            if image.start < stop and image.stop > start:
                digest.update(f"{image.start} {image.image.digest}".encode())
        return digest.digest()


def _tokens(block: Block) -> int:
    return next(iter(next(iter(block.values())).values())).shape[2]


def _nbytes(block: Block) -> int:
    return sum(row.nbytes for rows in block.values() for row in rows.values())
