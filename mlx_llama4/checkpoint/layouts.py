"""From the layout of a source tensor to that of the model's, for any range of its rows.

A layout never mixes rows of the first axis (experts, or output features), so that each range
can be read, laid out and written on its own.
"""

from typing import Literal

import numpy as np

# Routed experts are stacked [experts, in, out] in Hugging Face's checkpoints, gate and up side
# by side, and [experts, out, in], apart, in MLX folders.
Layout = Literal["as is", "transposed", "gate and up"]

# A copy that walks along one axis and jumps along the other misses the cache at every step. By
# blocks that read long stretches of few rows it was measured to be five times as fast (Linux x86).
BLOCK_INPUTS = 16
BLOCK_OUTPUTS = 1024


def transposed(source: np.ndarray) -> np.ndarray:
    """[…, in, out] → […, out, in], in order of memory."""
    *outer, inputs, outputs = source.shape
    result = np.empty((*outer, outputs, inputs), source.dtype)
    for row in range(0, inputs, BLOCK_INPUTS):
        rows = slice(row, row + BLOCK_INPUTS)
        for column in range(0, outputs, BLOCK_OUTPUTS):
            columns = slice(column, column + BLOCK_OUTPUTS)
            result[..., columns, rows] = source[..., rows, columns].swapaxes(-1, -2)
    return result


def model_shapes(layout: Layout, source: tuple[int, ...]) -> list[tuple[int, ...]] | None:
    """Shapes of the model tensors that a source tensor holds, in the order of its targets; None
    if the source's shape cannot have this layout.
    """
    if layout == "as is":
        return [source]
    if len(source) != 3:
        return None
    experts, inputs, outputs = source
    if layout == "transposed":
        return [(experts, outputs, inputs)]
    return None if outputs % 2 else [(experts, outputs // 2, inputs)] * 2
