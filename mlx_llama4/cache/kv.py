"""Keys and values of a global layer: every token, in the order in which it came."""

from collections.abc import Iterator

import mlx.core as mx

from mlx_llama4.errors import PromptError
from mlx_llama4.memory import CACHE_BLOCK_TOKENS


def allocation(tokens: int) -> int:
    """Tokens that a buffer is given for `tokens` of them: whole blocks, so that a decode step
    rarely copies."""
    return -(-tokens // CACHE_BLOCK_TOKENS) * CACHE_BLOCK_TOKENS


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

    def steps(self, length: int, attention_step: int) -> Iterator[tuple[int, int]]:
        """Split `length` new tokens into (start, stop) ranges that one attention call takes."""
        for start in range(0, length, attention_step):
            yield start, min(start + attention_step, length)

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append [B, kv_heads, L, head_dim]; return all keys and values that the L tokens see,
        the last of which is each one's own: a causal mask is all that attention needs.
        """
        start, self.offset = self.offset, self.offset + keys.shape[2]
        capacity = allocation(max(self.offset, self.reserved))
        return self.keys.write(start, keys, capacity), self.values.write(start, values, capacity)

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
