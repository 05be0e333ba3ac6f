"""The vision tower: tiles of pixels → features, a quarter as many as patches.

A MetaCLIP-style encoder. Shapes: n tiles, S tile side in pixels, p patch side in pixels,
P = (S / p)² patches, D vision width, H heads.
"""

from collections.abc import Sequence

import mlx.core as mx
from mlx import nn

from mlx_llama4.config import VisionConfig
from mlx_llama4.model.linear import Linear
from mlx_llama4.model.rope import VisionRope

LAYER_NORM_EPSILON = 1e-5  # the reference builds its norms with torch's default, not `norm_eps`
# Head widths for which MLX's attention on Metal has a fused kernel for long queries
# (backend/metal/scaled_dot_product_attention.cpp, has_fused_kernel, without those it calls slower).
# The releases' width of 88 is not among them, and unfused attention keeps all scores in memory.
FUSED_HEAD_DIMS = (64, 72, 80, 96, 128)


def fused_head_dim(head_dim: int) -> int:
    """The width to pad heads to. Only Metal gains by it; other devices keep the heads' own."""
    on_metal = mx.metal.is_available() and mx.default_device() == mx.gpu
    fitting = [width for width in FUSED_HEAD_DIMS if width >= head_dim]
    return fitting[0] if on_metal and fitting else head_dim


class VisionAttention(nn.Module):
    """Full attention over the patches of one tile; every projection has a bias."""

    def __init__(self, vision: VisionConfig, rope: VisionRope):
        super().__init__()
        width = vision.hidden_size
        self.num_heads = vision.num_attention_heads
        self.head_dim = width // self.num_heads
        self.scale = self.head_dim**-0.5
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.o_proj = Linear(width, width)
        self.rope = rope

    def __call__(self, x: mx.array) -> mx.array:
        heads = (*x.shape[:2], self.num_heads, -1)
        queries = self.rope(self.q_proj(x).reshape(heads))  # [n, P + 1, H, D / H]
        keys = self.rope(self.k_proj(x).reshape(heads))
        values = self.v_proj(x).reshape(heads)
        output = self._attend(queries, keys, values)
        return self.o_proj(output.transpose(0, 2, 1, 3).reshape(x.shape))

    def _attend(self, *heads: mx.array) -> mx.array:
        """Queries, keys and values [n, P + 1, H, D / H] → [n, H, P + 1, D / H]"""
        extra = fused_head_dim(self.head_dim) - self.head_dim
        padded: Sequence[mx.array] = heads
        if extra:  # zeros add nothing to scores, and columns of zeros to the output
            padded = [mx.pad(part, [(0, 0)] * 3 + [(0, extra)]) for part in heads]
        queries, keys, values = (part.transpose(0, 2, 1, 3) for part in padded)
        output = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self.scale)
        return output[..., : self.head_dim]


class VisionMLP(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1 = Linear(width, inner)
        self.fc2 = Linear(inner, width)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(nn.gelu(self.fc1(x)))  # exact, with erf


class VisionBlock(nn.Module):
    def __init__(self, vision: VisionConfig, rope: VisionRope):
        super().__init__()
        width = vision.hidden_size
        self.input_layernorm = nn.LayerNorm(width, LAYER_NORM_EPSILON)
        self.self_attn = VisionAttention(vision, rope)
        self.post_attention_layernorm = nn.LayerNorm(width, LAYER_NORM_EPSILON)
        self.mlp = VisionMLP(width, vision.intermediate_size)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class VisionEncoder(nn.Module):
    def __init__(self, vision: VisionConfig):
        super().__init__()
        rope = VisionRope(vision)
        self.layers = [VisionBlock(vision, rope) for _ in range(vision.num_hidden_layers)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return x


class AdapterMLP(nn.Module):
    """Two layers, each followed by the activation."""

    def __init__(self, vision: VisionConfig):
        super().__init__()
        width = vision.projector_output_dim
        self.fc1 = Linear(vision.intermediate_size, vision.projector_input_dim, bias=False)
        self.fc2 = Linear(width, width, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return nn.gelu(self.fc2(nn.gelu(self.fc1(x))))


class VisionAdapter(nn.Module):
    """Pixel shuffle: neighbouring patches become channels, then an MLP."""

    def __init__(self, vision: VisionConfig):
        super().__init__()
        self.side = vision.patches_per_side
        self.ratio = vision.pixel_shuffle_ratio
        self.mlp = AdapterMLP(vision)

    def __call__(self, x: mx.array) -> mx.array:
        """[n, P, D] → [n, P · ratio², vision_output_dim]"""
        tiles, side, short = x.shape[0], self.side, int(self.side * self.ratio)
        x = x.reshape(tiles, side, short, -1)  # columns in pairs
        x = x.transpose(0, 2, 1, 3).reshape(tiles, short, short, -1)  # then rows in pairs
        x = x.transpose(0, 2, 1, 3).reshape(tiles, short * short, -1)
        return self.mlp(x)


class PatchEmbedding(nn.Module):
    """Non-overlapping patches through one linear layer; its input is ordered [channel, y, x]."""

    def __init__(self, vision: VisionConfig):
        super().__init__()
        self.patch_size = vision.patch_size
        inputs = vision.num_channels * vision.patch_size**2
        self.linear = Linear(inputs, vision.hidden_size, bias=False)

    def __call__(self, pixels: mx.array) -> mx.array:
        """[n, 3, S, S] → [n, P, D]"""
        return self.linear(self.unfold(pixels))

    def unfold(self, pixels: mx.array) -> mx.array:
        """[n, 3, S, S] → [n, P, 3 · p²]"""
        tiles, channels, side, _ = pixels.shape
        count, patch = side // self.patch_size, self.patch_size
        patches = pixels.reshape(tiles, channels, count, patch, count, patch)
        patches = patches.transpose(0, 2, 4, 1, 3, 5)  # [n, y, x, 3, p, p]
        return patches.reshape(tiles, count * count, -1)


class VisionModel(nn.Module):
    def __init__(self, vision: VisionConfig):
        super().__init__()
        width = vision.hidden_size
        self.patch_embedding = PatchEmbedding(vision)
        self.class_embedding = mx.zeros((width,))
        self.positional_embedding_vlm = mx.zeros((vision.patches_per_side**2 + 1, width))
        self.layernorm_pre = nn.LayerNorm(width, LAYER_NORM_EPSILON)
        self.model = VisionEncoder(vision)
        self.layernorm_post = nn.LayerNorm(width, LAYER_NORM_EPSILON)
        self.vision_adapter = VisionAdapter(vision)

    def __call__(self, pixels: mx.array) -> mx.array:
        """Normalised pixels [n, 3, S, S] → [n, tokens_per_tile, vision_output_dim]"""
        x = self.patch_embedding(pixels)
        class_token = mx.broadcast_to(self.class_embedding, (x.shape[0], 1, x.shape[2]))
        x = mx.concatenate([x, class_token], axis=1)  # the class token is last
        x = self.layernorm_pre(x + self.positional_embedding_vlm)
        x = self.layernorm_post(self.model(x))
        return self.vision_adapter(x[:, :-1])
