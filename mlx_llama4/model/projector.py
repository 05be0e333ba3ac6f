"""From the vision tower's width to the text tower's."""

import mlx.core as mx
from mlx import nn

from mlx_llama4.model.linear import Linear


class MultiModalProjector(nn.Module):
    def __init__(self, vision_output_dim: int, hidden_size: int):
        super().__init__()
        self.linear_1 = Linear(vision_output_dim, hidden_size, bias=False)

    def __call__(self, features: mx.array) -> mx.array:
        return self.linear_1(features)
