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

from mlx_llama4.cache.kv import KVCache, allocation


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

    def steps(self, length: int, attention_step: int) -> Iterator[tuple[int, int]]:
        start, position = 0, self.next_position
        while start < length:
            room = length if self.chunk_size is None else self.chunk_size - position
            stop = min(start + attention_step, start + room, length)
            yield start, stop
            position = (position + stop - start) % self.chunk_size if self.chunk_size else 0
            start = stop

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        fill = self.next_position
        if self.chunk_size is not None and fill + keys.shape[2] > self.chunk_size:
            raise ValueError(
                f"{keys.shape[2]} tokens cross the border of a chunk of {self.chunk_size}, "
                f"{fill} of which are taken; split them with steps()"
            )
        self.chunk_start = self.offset - fill
        self.offset += keys.shape[2]
        capacity = allocation(max(fill + keys.shape[2], self.reserved))
        if self.chunk_size is not None:
            capacity = min(capacity, self.chunk_size)
        return self.keys.write(fill, keys, capacity), self.values.write(fill, values, capacity)

    @property
    def earliest_rewind(self) -> int:
        return self.chunk_start
