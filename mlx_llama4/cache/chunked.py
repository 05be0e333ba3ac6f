"""Keys and values of a chunked layer: at most one chunk; each border starts a new one.

A RoPE layer never looks past the chunk of its query. With a chunk of 4:

    position         0 1 2 3 | 4 5 6 7 | 8
    token 5 sees             | 4 5
    held after 3     0 1 2 3 |            fill 4: complete, overwritten by token 4
    held after 5             | 4 5        fill 2

Borders are multiples of the chunk size, counted from the row's first token. Only relative
positions inside a chunk matter, so positions are counted from the chunk's start. The attention is
the same, and exact at any length (absolute float32 angles are off by 0.5 in q·k at 1M tokens).

At a border the layer needs no past. So the cache can go back to any border, whatever it holds, and
to any position inside the chunk that it holds.
"""

from collections.abc import Iterator

import mlx.core as mx

from mlx_llama4.cache.kv import KVCache, Rows, Seen, allocation, ranges


class ChunkedKVCache(KVCache):
    """Cache of one chunked layer. `chunk_size` None: one endless chunk."""

    def __init__(self, chunk_size: int | None):
        super().__init__()
        self.chunk_size = chunk_size
        self.chunk_start = 0  # position of the first token held

    @property
    def first_held(self) -> int:
        return self.chunk_start

    @property
    def next_position(self) -> int:
        """Position of the next token inside its chunk."""
        return self.offset % self.chunk_size if self.chunk_size else self.offset

    def pieces(self, length: int) -> Iterator[tuple[int, int, int]]:
        start, position = 0, self.next_position
        while start < length:
            room = self.chunk_size - position if self.chunk_size else length
            stop = min(start + room, length)
            yield start, stop, position
            start, position = stop, 0

    def extend(self, keys: mx.array, values: mx.array, attention_step: int) -> Iterator[Seen]:
        length = keys.shape[2]
        for start, stop, position in list(self.pieces(length)):
            seen: Rows = {"keys": keys[:, :, start:stop], "values": values[:, :, start:stop]}
            # Before anything is overwritten: an interruption may come between any two lines.
            self.chunk_start = self.offset - position
            is_kept = position > 0 or stop == length
            if is_kept:
                seen = self._write(seen, position)
            self.offset += stop - start
            if not is_kept:  # a whole chunk that no later token sees
                self.chunk_start = self.offset
            yield from ranges(seen["keys"], seen["values"], start, stop, position, attention_step)

    def most_seen(self, length: int) -> int:
        seen = self.next_position + length
        return min(seen, self.chunk_size) if self.chunk_size else seen

    def append(self, rows: Rows) -> None:
        position = self.next_position
        self.chunk_start = self.offset - position
        length = next(iter(rows.values())).shape[2]
        self._write(rows, position)
        self.offset += length

    def _capacity(self, tokens: int) -> int:
        capacity = allocation(max(tokens, self.reserved))
        return min(capacity, self.chunk_size) if self.chunk_size else capacity

    def reversible(self, length: int) -> int:
        """Stops at the border, past which this chunk is overwritten."""
        room = self.chunk_size - self.next_position if self.chunk_size else length
        return min(length, room)

    def rewind_point(self, position: int) -> int:
        if position >= self.chunk_start or not self.chunk_size:
            return min(position, self.offset)
        return position // self.chunk_size * self.chunk_size

    def rewind(self, position: int) -> None:
        super().rewind(position)
        self.chunk_start = min(self.chunk_start, position)

    def skip_to(self, border: int) -> None:
        """Counts all tokens before a border as seen, which none after it looks at."""
        self.offset = self.chunk_start = border
