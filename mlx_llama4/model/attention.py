"""Self-attention of one decoder layer, chunked or global.

Shapes: B rows, L new tokens, D hidden size, H query heads, G key/value heads, K head_dim.
"""

import math

import mlx.core as mx
from mlx import nn

from mlx_llama4.cache.kv import AttentionCache, KVCache
from mlx_llama4.cache.packed_array import PackedArray, packed_attention
from mlx_llama4.config import LayerKind, TextConfig
from mlx_llama4.memory import queries_at_once
from mlx_llama4.model.cpu_layout import column_major
from mlx_llama4.model.joined import joined
from mlx_llama4.model.rope import TextRope


class Attention(nn.Module):
    """Grouped-query attention.

    Chunked layers rotate queries and keys, then (Scout) normalise them to unit RMS, without a
    weight and with the model's own epsilon. Global layers scale queries by a temperature that
    grows with the position (config keys `attn_scale`, `floor_scale`; arXiv 2501.19399).
    """

    def __init__(self, text: TextConfig, kind: LayerKind):
        super().__init__()
        hidden, bias = text.hidden_size, text.attention_bias
        self.num_heads = text.num_attention_heads
        self.num_kv_heads = text.num_key_value_heads
        self.q_proj = nn.Linear(hidden, text.num_attention_heads * text.head_dim, bias)
        self.k_proj = nn.Linear(hidden, text.num_key_value_heads * text.head_dim, bias)
        self.v_proj = nn.Linear(hidden, text.num_key_value_heads * text.head_dim, bias)
        self.o_proj = nn.Linear(text.num_attention_heads * text.head_dim, hidden, bias)
        self.scale = text.head_dim**-0.5
        self.chunked = kind.attention == "chunked"
        if self.chunked:
            self.rope = TextRope(text)
            self.norm_epsilon = text.rms_norm_eps if text.use_qk_norm else None
        else:
            self.tuned = text.attn_temperature_tuning
            self.attn_scale = text.attn_scale
            self.floor_scale = text.floor_scale

    def __call__(self, x: mx.array, cache: AttentionCache, attention_step: int) -> mx.array:
        """[B, L, D] → [B, L, D]. A step of attention has at most `attention_step` queries and never
        crosses a chunk border, so its mask is always plainly causal.
        """
        batch, length, _ = x.shape
        queries_and_keys, values = mx.split(
            self._project(x), [self.num_heads + self.num_kv_heads], 1
        )
        pieces = list(cache.pieces(length)) if self.chunked else []
        if length == 1:
            queries_and_keys = self._rotate(queries_and_keys, pieces)
            queries, keys = mx.split(queries_and_keys, [self.num_heads], 1)
        else:
            # Separate arrays: a slice in use would keep the whole projection in memory.
            queries, keys = mx.split(queries_and_keys, [self.num_heads], 1)
            queries, keys = self._rotate(queries, pieces), self._rotate(keys, pieces)
            values = mx.contiguous(values)
        outputs = [
            self._attend_to(*rows, attention_step) for rows in cache.split(queries, keys, values)
        ]
        output = outputs[0] if len(outputs) == 1 else mx.concatenate(outputs)
        # [B, H, L, K] → [B, L, H · K]
        return self.o_proj(output.transpose(0, 2, 1, 3).reshape(batch, length, -1))

    def _attend_to(
        self,
        cache: KVCache,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        attention_step: int,
    ) -> mx.array:
        """[B, H, L, K] → [B, H, L, K] for the rows of one cache, which takes in the new tokens."""
        length, scale = queries.shape[2], self.scale
        if not self.chunked and self.tuned:
            queries, scale = self._tune(queries, cache.offset)
        if mx.default_device() == mx.cpu:
            keys_seen = cache.most_seen(length)
            attention_step = min(attention_step, queries_at_once(self.num_heads, keys_seen))
        outputs: list[mx.array] = []
        steps = cache.extend(keys, values, attention_step)
        for start, stop, seen_keys, seen_values in steps:
            step = queries if stop - start == length else queries[:, :, start:stop]
            if outputs and mx.default_device() == mx.cpu:
                # One after the other, or MLX would materialise the scores of many steps at once.
                step = mx.depends(step, outputs[-1])
            outputs.append(_attend(step, seen_keys, seen_values, scale))
        return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=2)

    def join_projections(self) -> None:
        """Joins the query, key and value projections into one layer, if they are packed alike."""
        projection = joined((self.q_proj, self.k_proj, self.v_proj))
        if projection is not None:
            self.qkv_proj = projection
            del self.q_proj, self.k_proj, self.v_proj

    def _project(self, x: mx.array) -> mx.array:
        """[B, L, D] → [B, H + 2 G, L, K]: queries, then keys, then values."""
        if "qkv_proj" in self:
            x = self.qkv_proj(x)
        else:
            x = mx.concatenate([self.q_proj(x), self.k_proj(x), self.v_proj(x)], axis=-1)
        heads = self.num_heads + 2 * self.num_kv_heads
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def _rotate(self, x: mx.array, pieces: list[tuple[int, int, int | mx.array]]) -> mx.array:
        """Rotates by the position inside the chunk; each piece starts at its own position. Global
        layers have no pieces, and are not rotated.
        """
        if not pieces:
            return x
        if len(pieces) == 1:
            x = self.rope(x, pieces[0][2])
        else:
            rotated = [self.rope(x[:, :, start:stop], first) for start, stop, first in pieces]
            x = mx.concatenate(rotated, axis=2)
        return x if self.norm_epsilon is None else mx.fast.rms_norm(x, None, self.norm_epsilon)

    def _tune(self, queries: mx.array, offset: int) -> tuple[mx.array, float]:
        """Queries times their temperature, and the scale that the scores still need.

        temperature = log(floor((position + 1) / floor_scale) + 1) · attn_scale + 1
        """
        length = queries.shape[2]
        if offset + length < self.floor_scale:
            return queries, self.scale
        if length == 1:
            # For one query the temperature is a number on the host: put into the scale, it is free.
            step = (offset + 1) // self.floor_scale
            return queries, self.scale * (math.log(step + 1) * self.attn_scale + 1)
        # float32 holds every position below 2^24 exactly.
        positions = mx.arange(offset + 1, offset + length + 1, dtype=mx.float32)
        steps = mx.floor(positions / self.floor_scale)
        temperature = mx.log1p(steps) * self.attn_scale + 1
        return (queries * temperature[:, None]).astype(queries.dtype), self.scale


def _attend(
    queries: mx.array, keys: mx.array | PackedArray, values: mx.array | PackedArray, scale: float
) -> mx.array:
    """Causal attention: a query sees all keys except those of later queries."""
    if isinstance(keys, PackedArray) and isinstance(values, PackedArray):
        return packed_attention(queries, keys, values, scale)
    if isinstance(keys, PackedArray) or isinstance(values, PackedArray):
        raise TypeError("a cache packs keys and values together, or neither")
    if queries.shape[2] == 1:
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale)
    if mx.default_device() == mx.cpu:
        keys = column_major(keys)  # worth a copy that several queries share
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask="causal")
