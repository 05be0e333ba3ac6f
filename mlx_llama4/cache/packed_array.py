"""Keys or values that are packed, and attention of single queries over them as they are."""

from dataclasses import dataclass

import mlx.core as mx

from mlx_llama4.quantization import KVQuantization


@dataclass(frozen=True)
class PackedArray:
    """[B, kv_heads, T, head_dim], packed along the last axis."""

    codes: mx.array
    scales: mx.array
    biases: mx.array
    quantization: KVQuantization

    def dequantized(self) -> mx.array:
        """The values, in the dtype of the scales."""
        q = self.quantization
        return mx.dequantize(self.codes, self.scales, self.biases, q.group_size, q.bits)

    def matmul(self, x: mx.array, transpose: bool) -> mx.array:
        q = self.quantization
        return mx.quantized_matmul(
            x, self.codes, self.scales, self.biases, transpose, q.group_size, q.bits
        )


def packed_attention(
    queries: mx.array, keys: PackedArray, values: PackedArray, scale: float
) -> mx.array:
    """Attention of one query a row over all keys: [B, heads, 1, head_dim] → the same shape."""
    batch, heads, _, head_dim = queries.shape
    kv_heads = keys.codes.shape[1]
    # Query heads that share a key head become the rows of one product.
    queries = (queries * scale).reshape(batch, kv_heads, heads // kv_heads, head_dim)
    scores = mx.softmax(keys.matmul(queries, transpose=True), axis=-1, precise=True)
    return values.matmul(scores, transpose=False).reshape(batch, heads, 1, head_dim)
