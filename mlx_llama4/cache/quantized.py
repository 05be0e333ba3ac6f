"""Packed keys and values of a global layer.

At a million tokens they are all there is: 49 GB in 16 bits for Scout, 26 GB in 8 bits and 14 GB
in 4. Chunked layers are bounded by their chunk and stay as they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from mlx_llama4.cache.kv import KVBuffer, KVCache, Rows, Seen, allocation, ranges
from mlx_llama4.quantization import KVQuantization

PARTS = ("codes", "scales", "biases")


@dataclass(frozen=True)
class PackedArray:
    """[B, kv_heads, T, head_dim], packed along the last axis."""

    codes: mx.array
    scales: mx.array
    biases: mx.array
    quantization: KVQuantization

    def dequantized(self) -> mx.array:
        """In the type of the scales."""
        q = self.quantization
        return mx.dequantize(self.codes, self.scales, self.biases, q.group_size, q.bits)

    def matmul(self, x: mx.array, transpose: bool) -> mx.array:
        q = self.quantization
        return mx.quantized_matmul(
            x, self.codes, self.scales, self.biases, transpose, q.group_size, q.bits
        )


class QuantizedKVCache(KVCache):
    """Cache of one global layer, packed once it holds more than `quantization.after` tokens.

    What attention sees is always what is stored, of new tokens too. So the same tokens give the
    same keys and values in whatever steps they come, but for those that came before the packing.
    """

    def __init__(self, quantization: KVQuantization):
        super().__init__()
        self.quantization = quantization

    @property
    def is_packed(self) -> bool:
        return "keys" not in self.buffers

    def extend(
        self, keys: mx.array, values: mx.array, attention_step: int
    ) -> Iterator[Seen | tuple[int, int, PackedArray, PackedArray]]:
        """As of a plain cache. A single token gets the arrays packed, of which it reads each once.

        Several would have to materialise their scores with all keys, 164 GB for a step of 2,048
        at 1M tokens. For them one layer at a time is unpacked, and attention is the usual one.
        """
        start, length = self.offset, keys.shape[2]
        if start + length > self.quantization.after:
            self._pack()
        if not self.is_packed:
            yield from super().extend(keys, values, attention_step)
            return
        seen = self._write(self._packed({"keys": keys, "values": values}), start)
        self.offset += length
        packed = [self._joined(seen, name) for name in ("keys", "values")]
        if length == 1:
            yield 0, 1, *packed
        else:
            unpacked = [array.dequantized() for array in packed]
            yield from ranges(*unpacked, 0, length, start, attention_step)

    def reversible(self, length: int) -> int:
        """None beyond where all is packed, which is done for good."""
        return length if self.is_packed else min(length, self.quantization.after - self.offset)

    def _capacity(self, tokens: int) -> int:
        if self.is_packed:
            return super()._capacity(tokens)
        # Unpacked, there will never be more than that.
        return allocation(max(tokens, min(self.reserved, self.quantization.after)))

    def append(self, rows: Rows) -> None:
        if "keys" not in rows:
            self._pack()
        super().append(self._packed(rows) if self.is_packed and "keys" in rows else rows)

    def _pack(self) -> None:
        """What is held so far; all buffers in one step, for an interruption must not part them."""
        if self.is_packed:
            return
        buffers = {f"{name}.{part}": KVBuffer() for name in self.buffers for part in PARTS}
        if self.offset:
            for name, array in self._packed(self.rows(0, self.offset)).items():
                buffers[name].array = array
        self.buffers = buffers

    def _packed(self, rows: Rows) -> Rows:
        q = self.quantization
        return {
            f"{name}.{part}": array
            for name, row in rows.items()
            for part, array in zip(PARTS, mx.quantize(row, q.group_size, q.bits), strict=True)
        }

    def _joined(self, rows: Rows, name: str) -> PackedArray:
        return PackedArray(*(rows[f"{name}.{part}"] for part in PARTS), self.quantization)


def packed_attention(
    queries: mx.array, keys: PackedArray, values: PackedArray, scale: float
) -> mx.array:
    """One query a row: [B, heads, 1, head_dim] → the same, over all keys."""
    batch, heads, _, head_dim = queries.shape
    kv_heads = keys.codes.shape[1]
    # The query heads that share a key head become the rows of one product.
    queries = (queries * scale).reshape(batch, kv_heads, heads // kv_heads, head_dim)
    scores = mx.softmax(keys.matmul(queries, transpose=True), axis=-1, precise=True)
    return values.matmul(scores, transpose=False).reshape(batch, heads, 1, head_dim)
