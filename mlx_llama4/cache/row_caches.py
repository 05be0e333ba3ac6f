"""Keys and values of rows that are decoded together: each row keeps ordinary caches of its own.

What has no past goes through the layer for all rows at once: projections, rotation by each row's
position, experts. Attention goes row by row, each with what its own cache holds. So rows of any
lengths stand beside each other, each with its own chunk borders, packed or not; none is padded,
none needs a mask, and a row joins or leaves without a copy.

The other way, all rows' keys and values in one array, padded to the longest and masked, would
have every row read as many keys as the longest row has. docs/performance.md has both measured.
"""

from collections.abc import Iterator, Sequence

import mlx.core as mx

from mlx_llama4.cache.kv import KVCache


class RowCaches:
    """Of one layer, a cache for each row, in the rows' order. Takes one token a row at a time."""

    def __init__(self, rows: Sequence[KVCache]):
        self.rows = list(rows)

    def pieces(self, length: int) -> Iterator[tuple[int, int, mx.array]]:
        """As of a chunked layer's cache; here the position is int32 [B], each row's own."""
        if length != 1:
            raise ValueError(f"rows decoded together take 1 token at a time, not {length}")
        yield 0, 1, mx.array([row.next_position for row in self.rows], mx.int32)

    def split(self, *arrays: mx.array) -> Iterator[tuple[KVCache | mx.array, ...]]:
        """Each row's cache with that row of the arrays: [B, …] → B times [1, …]."""
        yield from zip(
            self.rows, *(mx.split(array, len(self.rows)) for array in arrays), strict=True
        )


def decoded_together(rows: Sequence[Sequence[KVCache]]) -> Sequence[KVCache | RowCaches]:
    """Caches of rows, each one a layer → one a layer, to be called with ids [B, 1]."""
    if len(rows) == 1:
        return rows[0]
    return [RowCaches(layer) for layer in zip(*rows, strict=True)]
