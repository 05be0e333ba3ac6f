"""Joins linear layers that read the same input: fewer kernels a token, the same files."""

from collections.abc import Sequence

import mlx.core as mx
from mlx import nn

PARTS = ("weight", "scales", "biases", "bias")  # all have the outputs as their first axis


def joined(layers: Sequence[nn.Linear | nn.QuantizedLinear]) -> nn.Module | None:
    """One layer whose output is theirs side by side, made lazily; None if their packings differ."""
    first, *others = layers
    if any(_kind(layer) != _kind(first) for layer in others):
        return None
    result = type(first).__new__(type(first))
    nn.Module.__init__(result)
    for part in PARTS:
        if first.get(part) is not None:
            result[part] = mx.concatenate([layer[part] for layer in layers])
    if isinstance(first, nn.QuantizedLinear):
        result.group_size, result.bits, result.mode = first.group_size, first.bits, first.mode
        result.freeze()  # as nn.QuantizedLinear does when it is made
    return result


def _kind(layer: nn.Linear | nn.QuantizedLinear) -> tuple:
    packing = ("group_size", "bits", "mode")
    return (
        type(layer),
        tuple(getattr(layer, name, None) for name in packing),
        tuple(layer[part].dtype if layer.get(part) is not None else None for part in PARTS),
    )
