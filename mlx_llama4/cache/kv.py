"""Keys and values of a global layer: every token, in the order in which it came."""

from collections.abc import Iterator, Mapping

import mlx.core as mx

from mlx_llama4.errors import PromptError
from mlx_llama4.memory import CACHE_BLOCK_TOKENS


def allocation(tokens: int) -> int:
    """Tokens that a buffer is given for `tokens` of them: whole blocks, so that a decode step
    rarely copies."""
    return -(-tokens // CACHE_BLOCK_TOKENS) * CACHE_BLOCK_TOKENS


# A range start … stop - 1 of new tokens, and the keys and values that it sees.
Seen = tuple[int, int, mx.array, mx.array]

# What a cache holds of some tokens, as it is stored: name of a buffer → [B, kv_heads, tokens, …].
Rows = Mapping[str, mx.array]


def ranges(
    keys: mx.array, values: mx.array, start: int, stop: int, before: int, attention_step: int
) -> Iterator[Seen]:
    """New tokens start … stop - 1 in ranges; keys and values hold `before` tokens, then these."""
    for first in range(start, stop, attention_step):
        last = min(first + attention_step, stop)
        end = before + last - start
        if end == keys.shape[2]:
            yield first, last, keys, values
        else:
            yield first, last, keys[:, :, :end], values[:, :, :end]


class KVBuffer:
    """One array [B, kv_heads, capacity, width], written in place and grown when full."""

    def __init__(self) -> None:
        self.array: mx.array | None = None

    def write(self, start: int, new: mx.array, capacity: int) -> mx.array:
        """Put `new` at token `start` and return tokens 0 … start + length - 1.

        `capacity` is the size to grow to, if what is there is too small.
        """
        stop = start + new.shape[2]
        if self.array is None or stop > self.array.shape[2]:
            room = mx.zeros((*new.shape[:2], capacity - start, new.shape[3]), new.dtype)
            kept = [] if start == 0 else [self.array[:, :, :start]]
            self.array = mx.concatenate([*kept, room], axis=2)
        self.array[:, :, start:stop] = new
        return self.array[:, :, :stop]

    def shrink(self, capacity: int) -> None:
        """Give room back, if there is more than twice what is needed."""
        if self.array is not None and self.array.shape[2] > 2 * capacity:
            self.array = mx.contiguous(self.array[:, :, :capacity])

    def copy(self) -> "KVBuffer":
        """Shares the array until one of the two writes to it, which then has a copy made."""
        copied = KVBuffer()
        if self.array is not None:
            # An object of its own: item assignment changes the object, not the values it had.
            copied.array = mx.stop_gradient(self.array)
        return copied

    @property
    def nbytes(self) -> int:
        return 0 if self.array is None else self.array.nbytes


class KVCache:
    """Cache of one global layer. `offset` is the number of tokens seen."""

    def __init__(self) -> None:
        self.buffers = {"keys": KVBuffer(), "values": KVBuffer()}
        self.offset = 0
        self.reserved = 0

    def reserve(self, tokens: int) -> None:
        """Announce that `tokens` will come in all, so that buffers are allocated once."""
        self.reserved = tokens

    def extend(self, keys: mx.array, values: mx.array, attention_step: int) -> Iterator[Seen]:
        """Take in [B, kv_heads, L, head_dim]; say what each of the L tokens sees.

        Attention goes by ranges of at most `attention_step` tokens. What a range sees ends with
        its own last token, so a causal mask aligned at the end is all it needs.
        """
        start, length = self.offset, keys.shape[2]
        seen = self._write({"keys": keys, "values": values}, start)
        self.offset += length  # last: an interruption must not leave a hole
        yield from ranges(seen["keys"], seen["values"], 0, length, start, attention_step)

    def split(self, *arrays: mx.array) -> Iterator[tuple["KVCache | mx.array", ...]]:
        """Caches, and of each array the rows whose keys and values are theirs: here this one and
        all of them. Rows that each have a cache of their own are in cache/row_caches.py.
        """
        yield self, *arrays

    def most_seen(self, length: int) -> int:
        """The most keys that any of the next `length` tokens sees."""
        return self.offset + length

    def _write(self, rows: Rows, start: int) -> Rows:
        """Put rows behind `start` others that are held; returns all that is then held."""
        length = next(iter(rows.values())).shape[2]
        capacity = self._capacity(start + length)
        return {name: self.buffers[name].write(start, new, capacity) for name, new in rows.items()}

    def _capacity(self, tokens: int) -> int:
        return allocation(max(tokens, self.reserved))

    @property
    def first_held(self) -> int:
        """Position of the first token whose keys and values are here; the last is offset - 1."""
        return 0

    def rows(self, start: int, stop: int) -> Rows:
        """What is stored of tokens start … stop - 1, all of them held."""
        first = self.first_held
        return {
            name: buffer.array[:, :, start - first : stop - first]
            for name, buffer in self.buffers.items()
        }

    def append(self, rows: Rows) -> None:
        """Take in, as the next tokens, what `rows` of a cache of the same layer gave."""
        length = next(iter(rows.values())).shape[2]
        self._write(rows, self.offset)
        self.offset += length

    @property
    def arrays(self) -> list[mx.array]:
        """What has to be evaluated for the cache to be up to date."""
        return [b.array for b in self.buffers.values() if b.array is not None]

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def reversible(self, length: int) -> int:
        """Of the next `length` tokens, how many can come in one step that can be taken back, to
        what would be there without it. Of a single token that is not asked.
        """
        return length

    def rewind_point(self, position: int) -> int:
        """The largest position, at most `position`, to which `rewind` can go."""
        return min(position, self.offset)

    def rewind(self, position: int) -> None:
        """Forget the tokens from `position` on; they are overwritten by the next update, or their
        room is given back if it is much more than what was reserved.
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
        """A cache that holds the same and goes its own way."""
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied.buffers = {name: buffer.copy() for name, buffer in self.buffers.items()}
        return copied
