"""The gated MLP of dense layers and of shared experts."""

import mlx.core as mx
from mlx import nn


class FeedForward(nn.Module):
    """down(silu(gate(x)) · up(x)), [..., hidden] → [..., hidden]"""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))
