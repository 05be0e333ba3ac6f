"""Keys and values of rows that are decoded together: each row keeps ordinary caches of its own.

Whatever needs no past goes through the layer for all rows at once: projections, rotation by each
row's position, experts. Attention goes row by row, each over its own cache. So rows of any length
can be decoded together, each with its own chunk borders, packed or not. No row is padded, none
needs a mask, and rows join or leave without a copy.

The alternative is one array for all rows, padded to the longest and masked. Then every row would
read as many keys as the longest row has. docs/performance.md compares both.
"""

from collections.abc import Iterator, Sequence

import mlx.core as mx

from mlx_llama4.cache.kv import AttentionCache, KVCache


class RowCaches:
    """The caches of one layer, one a row. Takes one token a row at a time."""

    def __init__(self, rows: Sequence[KVCache]):
        self.rows = list(rows)  # in the rows' order

    def pieces(self, length: int) -> Iterator[tuple[int, int, mx.array]]:
        if length != 1:
            raise ValueError(f"rows decoded together take 1 token at a time, not {length}")
        yield 0, 1, mx.array([row.next_position for row in self.rows], mx.int32)

    def split(
        self, queries: mx.array, keys: mx.array, values: mx.array
    ) -> Iterator[tuple[KVCache, mx.array, mx.array, mx.array]]:
        """[B, …] → B times [1, …]"""
        arrays = (mx.split(array, len(self.rows)) for array in (queries, keys, values))
        yield from zip(self.rows, *arrays, strict=True)


def decoded_together(rows: Sequence[Sequence[KVCache]]) -> Sequence[AttentionCache]:
    """Each row's caches, one a layer → one cache a layer for all rows, to call with ids [B, 1]."""
    if len(rows) == 1:
        return rows[0]
    return [RowCaches(layer) for layer in zip(*rows, strict=True)]
