"""One decoder layer."""

import mlx.core as mx
from mlx import nn

from mlx_llama4.cache.kv import AttentionCache
from mlx_llama4.config import LayerKind, TextConfig
from mlx_llama4.model.attention import Attention
from mlx_llama4.model.feed_forward import FeedForward
from mlx_llama4.model.moe import MixtureOfExperts


class Block(nn.Module):
    """Attention, then the feed-forward, each on the normalised input and added to it."""

    def __init__(self, text: TextConfig, kind: LayerKind):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(text.hidden_size, text.rms_norm_eps)
        self.self_attn = Attention(text, kind)
        self.post_attention_layernorm = nn.RMSNorm(text.hidden_size, text.rms_norm_eps)
        self.feed_forward: MixtureOfExperts | FeedForward
        if kind.feed_forward == "moe":
            self.feed_forward = MixtureOfExperts(text)
        else:
            self.feed_forward = FeedForward(text.hidden_size, text.intermediate_size_mlp)

    def __call__(
        self, x: mx.array, cache: AttentionCache, attention_step: int, last_only: bool = False
    ) -> mx.array:
        """[B, L, D] → [B, L, D]; attention in steps, the feed-forward on all tokens at once.

        `last_only` returns the last position alone, [B, 1, D], and skips the feed-forward of the
        others.
        """
        x = self.attend(x, cache, attention_step)
        if last_only:
            x = x[:, -1:]
        return x + self.feed_forward(self.post_attention_layernorm(x))

    def attend(self, x: mx.array, cache: AttentionCache, attention_step: int) -> mx.array:
        """The layer's first half, [B, L, D] → [B, L, D]."""
        return x + self.self_attn(self.input_layernorm(x), cache, attention_step)
