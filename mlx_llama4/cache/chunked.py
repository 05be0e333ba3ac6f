"""Keys and values of a chunked layer: at most one chunk, started again at each border.

A RoPE layer never looks past the chunk of its query. With a chunk of 4:

    position         0 1 2 3 | 4 5 6 7 | 8
    token 5 sees             | 4 5
    held after 3     0 1 2 3 |            fill 4: complete, overwritten by token 4
    held after 5             | 4 5        fill 2

Borders are multiples of the chunk size counted from the row's first token. Since positions
only matter relative to each other inside a chunk, they are counted from the chunk's start:
the same attention, and exact at any length (absolute float32 angles are off by 0.5 in q·k at
1M tokens).
"""

from collections.abc import Iterator

import mlx.core as mx

from mlx_llama4.cache.kv import KVCache, Seen, allocation, ranges


class ChunkedKVCache(KVCache):
    """Cache of one chunked layer. `chunk_size` None means that nothing is ever cut off."""

    def __init__(self, chunk_size: int | None):
        super().__init__()
        self.chunk_size = chunk_size
        self.chunk_start = 0  # position of the first token held

    @property
    def next_position(self) -> int:
        """Position inside its chunk of the token that comes next."""
        return self.offset % self.chunk_size if self.chunk_size else self.offset

    def pieces(self, length: int) -> Iterator[tuple[int, int, int]]:
        """The next `length` tokens cut at the borders: (start, stop, position of the first)."""
        start, position = 0, self.next_position
        while start < length:
            room = self.chunk_size - position if self.chunk_size else length
            stop = min(start + room, length)
            yield start, stop, position
            start, position = stop, 0

    def extend(self, keys: mx.array, values: mx.array, attention_step: int) -> Iterator[Seen]:
        length = keys.shape[2]
        for start, stop, position in list(self.pieces(length)):
            new_keys, new_values = keys[:, :, start:stop], values[:, :, start:stop]
            if position or stop == length:
                capacity = self._capacity(position + stop - start)
                new_keys = self.keys.write(position, new_keys, capacity)
                new_values = self.values.write(position, new_values, capacity)
            # Else a whole chunk that begins and ends in here, and that nothing will see again.
            self.chunk_start = self.offset - position
            self.offset += stop - start
            yield from ranges(new_keys, new_values, start, stop, position, attention_step)

    def _capacity(self, tokens: int) -> int:
        capacity = allocation(max(tokens, self.reserved))
        return min(capacity, self.chunk_size) if self.chunk_size else capacity

    @property
    def earliest_rewind(self) -> int:
        return self.chunk_start
