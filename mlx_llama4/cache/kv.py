"""Keys and values of a global layer: those of every token, in order."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import mlx.core as mx

from mlx_llama4.cache.packed_array import PackedArray
from mlx_llama4.errors import PromptError
from mlx_llama4.memory import CACHE_BLOCK_TOKENS


def allocation(tokens: int) -> int:
    """The capacity of a buffer that holds `tokens` tokens: whole blocks, so that a decode step
    rarely copies.
    """
    return -(-tokens // CACHE_BLOCK_TOKENS) * CACHE_BLOCK_TOKENS


# New tokens start … stop - 1, and the keys and values that they see, both packed or neither.
Seen = tuple[int, int, mx.array | PackedArray, mx.array | PackedArray]

# Some tokens' keys and values as a cache stores them: name of a buffer → [B, kv_heads, tokens, …].
Rows = Mapping[str, mx.array]


def ranges(
    keys: mx.array, values: mx.array, start: int, stop: int, before: int, attention_step: int
) -> Iterator[Seen]:
    """Yields new tokens start … stop - 1 in ranges of `attention_step`. `keys` and `values` hold
    `before` earlier tokens, then these.
    """
    for first in range(start, stop, attention_step):
        last = min(first + attention_step, stop)
        end = before + last - start
        if end == keys.shape[2]:
            yield first, last, keys, values
        else:
            yield first, last, keys[:, :, :end], values[:, :, :end]


class KVBuffer:
    """An array [B, kv_heads, capacity, width], written in place and grown when full."""

    def __init__(self) -> None:
        self.array: mx.array | None = None

    def write(self, start: int, new: mx.array, capacity: int) -> mx.array:
        """Writes `new` from token `start` on; returns tokens 0 … start + length - 1.

        `capacity` is the size to grow to if the array is too small.
        """
        stop = start + new.shape[2]
        if self.array is None or stop > self.array.shape[2]:
            room = mx.zeros((*new.shape[:2], capacity - start, new.shape[3]), new.dtype)
            kept = [] if start == 0 or self.array is None else [self.array[:, :, :start]]
            self.array = mx.concatenate([*kept, room], axis=2)
        self.array[:, :, start:stop] = new
        return self.array[:, :, :stop]

    def shrink(self, capacity: int) -> None:
        """Reallocates at `capacity` if the array is more than twice as large."""
        if self.array is not None and self.array.shape[2] > 2 * capacity:
            self.array = mx.contiguous(self.array[:, :, :capacity])

    def copy(self) -> "KVBuffer":
        """A buffer that shares the array until one of the two writes to it."""
        copied = KVBuffer()
        if self.array is not None:
            # A new object over the same memory: item assignment rebinds the object written to.
            copied.array = mx.stop_gradient(self.array)
        return copied

    @property
    def nbytes(self) -> int:
        return 0 if self.array is None else self.array.nbytes


class AttentionCache(Protocol):
    """What a layer asks of its cache: a KVCache, or RowCaches of rows that are decoded together."""

    def pieces(self, length: int) -> Iterator[tuple[int, int, int | mx.array]]:
        """Cuts the next `length` tokens at chunk borders: (start, stop, position of the first). The
        position counts from the border, and is int32 [B] where rows have positions of their own.
        """
        ...

    def split(
        self, queries: mx.array, keys: mx.array, values: mx.array
    ) -> Iterator[tuple["KVCache", mx.array, mx.array, mx.array]]:
        """Yields each KVCache with its rows of the arrays."""
        ...


class KVCache:
    """Cache of one global layer. Other kinds of layers derive theirs from it."""

    def __init__(self) -> None:
        self.buffers = {"keys": KVBuffer(), "values": KVBuffer()}
        self.offset = 0  # tokens seen
        self.reserved = 0  # tokens announced

    def reserve(self, tokens: int) -> None:
        """Announces that the cache will hold `tokens` in all, so that buffers grow only once."""
        self.reserved = tokens

    def extend(self, keys: mx.array, values: mx.array, attention_step: int) -> Iterator[Seen]:
        """Takes in keys and values [B, kv_heads, L, head_dim]; yields what each of the L tokens
        sees, in ranges of at most `attention_step` tokens.

        What a range sees ends with its own last token, so a causal mask aligned at the end is all
        it needs.
        """
        start, length = self.offset, keys.shape[2]
        seen = self._write({"keys": keys, "values": values}, start)
        self.offset += length  # last: an interruption must not leave a hole
        yield from ranges(seen["keys"], seen["values"], 0, length, start, attention_step)

    @property
    def next_position(self) -> int:
        """The position by which the next token is rotated."""
        return self.offset

    def pieces(self, length: int) -> Iterator[tuple[int, int, int]]:
        yield 0, length, self.next_position

    def split(
        self, queries: mx.array, keys: mx.array, values: mx.array
    ) -> Iterator[tuple["KVCache", mx.array, mx.array, mx.array]]:
        yield self, queries, keys, values

    def most_seen(self, length: int) -> int:
        """The most keys that any of the next `length` tokens sees."""
        return self.offset + length

    def _write(self, rows: Rows, start: int) -> Rows:
        """Writes rows behind `start` earlier ones; returns all rows then held."""
        length = next(iter(rows.values())).shape[2]
        capacity = self._capacity(start + length)
        return {name: self.buffers[name].write(start, new, capacity) for name, new in rows.items()}

    def _capacity(self, tokens: int) -> int:
        return allocation(max(tokens, self.reserved))

    @property
    def first_held(self) -> int:
        """Position of the first token held; the last one is offset - 1."""
        return 0

    def rows(self, start: int, stop: int) -> Rows:
        """The stored rows of tokens start … stop - 1, which must all be held."""
        first = self.first_held
        return {
            name: buffer.array[:, :, start - first : stop - first]
            for name, buffer in self.buffers.items()
            if buffer.array is not None
        }

    def append(self, rows: Rows) -> None:
        """Takes in, as the next tokens, rows that another cache of this layer returned."""
        length = next(iter(rows.values())).shape[2]
        self._write(rows, self.offset)
        self.offset += length

    @property
    def arrays(self) -> list[mx.array]:
        """The arrays to evaluate so that the cache is up to date."""
        return [b.array for b in self.buffers.values() if b.array is not None]

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def reversible(self, length: int) -> int:
        """How many of the next `length` tokens one step can take in so that `rewind` undoes it
        exactly. Not asked for a single token.
        """
        return length

    def rewind_point(self, position: int) -> int:
        """The largest position, at most `position`, to which `rewind` can go."""
        return min(position, self.offset)

    def rewind(self, position: int) -> None:
        """Forgets the tokens from `position` on. The next update overwrites them; memory is given
        back where it is much more than was reserved. Raises PromptError for a position that is not
        a rewind point.
        """
        if not 0 <= position <= self.offset or self.rewind_point(position) != position:
            raise PromptError(
                f"a cache that holds tokens {self.first_held} to {self.offset} "
                f"cannot go back to {position}"
            )
        self.offset = position
        for buffer in self.buffers.values():
            buffer.shrink(self._capacity(position))

    def copy(self) -> "KVCache":
        """An independent cache with the same contents."""
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied.buffers = {name: buffer.copy() for name, buffer in self.buffers.items()}
        return copied
