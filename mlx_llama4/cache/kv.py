"""Keys and values of a global layer: every token, in the order in which it came."""

from collections.abc import Iterator

import mlx.core as mx

from mlx_llama4.errors import PromptError
from mlx_llama4.memory import CACHE_BLOCK_TOKENS


def allocation(tokens: int) -> int:
    """Tokens that a buffer is given for `tokens` of them: whole blocks, so that a decode step
    rarely copies."""
    return -(-tokens // CACHE_BLOCK_TOKENS) * CACHE_BLOCK_TOKENS


# A range start … stop - 1 of new tokens, and the keys and values that it sees.
Seen = tuple[int, int, mx.array, mx.array]


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
    """One array [B, kv_heads, capacity, head_dim], written in place and grown when full."""

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

    @property
    def nbytes(self) -> int:
        return 0 if self.array is None else self.array.nbytes


class KVCache:
    """Cache of one global layer. `offset` is the number of tokens seen."""

    def __init__(self) -> None:
        self.keys = KVBuffer()
        self.values = KVBuffer()
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
        capacity = allocation(max(start + length, self.reserved))
        keys = self.keys.write(start, keys, capacity)
        values = self.values.write(start, values, capacity)
        self.offset += length  # last: an interruption must not leave a hole
        yield from ranges(keys, values, 0, length, start, attention_step)

    @property
    def arrays(self) -> list[mx.array]:
        """What has to be evaluated for the cache to be up to date."""
        return [b.array for b in (self.keys, self.values) if b.array is not None]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def earliest_rewind(self) -> int:
        """Smallest position to which `rewind` can go."""
        return 0

    def rewind(self, position: int) -> None:
        """Forget the tokens from `position` on; they are overwritten by the next update."""
        if not self.earliest_rewind <= position <= self.offset:
            raise PromptError(
                f"a cache that holds tokens {self.earliest_rewind} to {self.offset} "
                f"cannot go back to {position}"
            )
        self.offset = position
