"""Mixture of experts: a router, routed experts, and a shared expert that every token takes.

Shapes: B rows, L tokens, D hidden size, E experts, k experts per token (1 in the releases),
N = B · L · k routed inputs.
"""

import mlx.core as mx
from mlx import nn

from mlx_llama4.config import TextConfig
from mlx_llama4.model.expert_linear import RoutedExperts, empty_experts
from mlx_llama4.model.feed_forward import FeedForward


class MixtureOfExperts(nn.Module):
    def __init__(self, text: TextConfig):
        super().__init__()
        self.num_experts_per_tok = text.num_experts_per_tok
        self.router = nn.Linear(text.hidden_size, text.num_local_experts, bias=False)
        self.experts: RoutedExperts = empty_experts(
            text.num_local_experts, text.hidden_size, text.intermediate_size
        )
        self.shared_expert = FeedForward(text.hidden_size, text.intermediate_size)

    def __call__(self, x: mx.array) -> mx.array:
        """[B, L, D] → [B, L, D]"""
        batch, length, hidden = x.shape
        shared = self.shared_expert(x)
        routed = self.experts(*self.route(x), shared)
        return shared + routed.reshape(batch, length, -1, hidden).sum(axis=-2)

    def route(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """x [B, L, D] → the experts' inputs [N, D], and the number of the expert of each, int [N].

        The score is a sigmoid, taken in float32, and multiplies the expert's input, not its
        output (transformers, Llama4TextMoe).
        """
        scores, experts = self._choose(self.router(x))  # [B, L, k]
        routed = x[..., None, :] * scores[..., None]  # [B, L, k, D]
        return routed.reshape(-1, x.shape[-1]), experts.reshape(-1)

    def _choose(self, logits: mx.array) -> tuple[mx.array, mx.array]:
        """Logits [B, L, E] → scores and expert numbers [B, L, k]."""
        k = self.num_experts_per_tok
        if k == 1:
            experts = mx.argmax(logits, axis=-1, keepdims=True)
        else:
            experts = mx.argpartition(-logits, kth=k - 1, axis=-1)[..., :k]
        # Expert numbers have no gradient; without this MLX asks for one and raises.
        experts = mx.stop_gradient(experts)
        chosen = mx.take_along_axis(logits, experts, axis=-1)
        return mx.sigmoid(chosen.astype(mx.float32)).astype(logits.dtype), experts
