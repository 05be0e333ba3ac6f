"""Rotary positions of the text tower (1-D) and of the vision tower (2-D).

Both turn neighbouring pairs (x0, x1), (x2, x3), … of a head ("traditional" order).
"""

import math

import mlx.core as mx
import numpy as np

from mlx_llama4.config import RopeScaling, TextConfig, VisionConfig


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Radians per position of each pair, float32 [head_dim / 2].

    Computed in float32 step by step as the reference does (transformers,
    modeling_rope_utils.py, `llama3`), so that rounding agrees.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1) / np.power(np.float32(theta), exponents)
    if scaling is None:
        return frequencies
    context = scaling.original_max_position_embeddings
    wavelengths = np.float32(2 * math.pi) / frequencies
    slowed = frequencies / np.float32(scaling.factor)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    is_long = wavelengths > context / low
    is_short = wavelengths < context / high
    scaled = np.where(is_long, slowed, frequencies)
    if high != low:  # equal in Scout: nothing lies between, and the blend would divide by zero
        blend = (np.float32(context) / wavelengths - np.float32(low)) / np.float32(high - low)
        blended = (1 - blend) * slowed + blend * frequencies
        scaled = np.where(~is_long & ~is_short, blended, scaled)
    return scaled.astype(np.float32)


class TextRope:
    """Rotates [B, heads, L, head_dim] by positions offset … offset + L - 1.

    The offset is one for all rows, or int [B] with one for each row.
    """

    def __init__(self, text: TextConfig):
        self.head_dim = text.head_dim
        frequencies = inverse_frequencies(text.head_dim, text.rope_theta, text.rope_scaling)
        self.periods = mx.array(1 / frequencies)

    def __call__(self, x: mx.array, offset: int | mx.array) -> mx.array:
        return mx.fast.rope(
            x,
            self.head_dim,
            traditional=True,
            base=None,
            scale=1.0,
            offset=offset,
            freqs=self.periods,
        )


class VisionRope:
    """Rotates [tiles, patches + 1, heads, head_dim] by each patch's column and row.

    The first half of a head's pairs turns by the column, the second by the row, both counted
    from 1; the class token, last, is not turned (transformers, Llama4VisionRotaryEmbedding).
    """

    def __init__(self, vision: VisionConfig):
        side = vision.patches_per_side
        half = vision.hidden_size // vision.num_attention_heads // 2
        frequencies = inverse_frequencies(half, vision.rope_theta, None)  # [head_dim / 4]
        row, column = np.divmod(np.arange(side * side, dtype=np.float32), np.float32(side))
        angles = np.concatenate(
            [np.outer(column + 1, frequencies), np.outer(row + 1, frequencies)], axis=-1
        )
        angles = np.concatenate([angles, np.zeros((1, half), np.float32)])[:, None, :, None]
        cosines, sines = np.cos(angles), np.sin(angles)
        # [patches + 1, 1, head_dim / 2, 2], the second for (x1, x0)
        self.cosines = mx.array(np.concatenate([cosines, cosines], axis=-1))
        self.sines = mx.array(np.concatenate([-sines, sines], axis=-1))

    def __call__(self, x: mx.array) -> mx.array:
        pairs = x.astype(mx.float32).reshape(*x.shape[:-1], -1, 2)
        turned = pairs * self.cosines + pairs[..., ::-1] * self.sines
        return turned.reshape(x.shape).astype(x.dtype)
