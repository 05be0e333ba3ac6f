"""How matrices lie in memory for MLX's CPU backend.

MLX's wheels for Linux bring the reference BLAS, whose dot products (x @ w.T with w row-major)
run at 2.5 GFLOP/s, its sums of columns (the same with w column-major) at 6.
"""

import mlx.core as mx
from mlx import nn

from mlx_llama4.model.expert_linear import ExpertLinear


def column_major(array: mx.array) -> mx.array:
    """The same array, its last two axes stored the other way round; lazily."""
    return mx.contiguous(array.swapaxes(-1, -2)).swapaxes(-1, -2)


def lay_out_for_cpu(model: nn.Module) -> None:
    """Store the weights of all linear layers that are not packed column-major."""
    for module in model.modules():
        if isinstance(module, nn.Linear | ExpertLinear):
            module.weight = column_major(module.weight)
