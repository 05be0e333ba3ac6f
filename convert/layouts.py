"""From the layout of a source tensor to that of the model's, for any range of its rows.

A layout never mixes rows of the first axis (experts, or output features), so that each range
can be read, laid out and written on its own.
"""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import mlx.core as mx

# Routed experts are stacked [experts, in, out] in Hugging Face's checkpoints, gate and up side
# by side, and [experts, out, in], apart, in MLX folders.
Layout = Literal["as is", "transposed", "gate and up"]


def lay_out(layout: Layout, source: "mx.array") -> "list[mx.array]":
    """Model tensors held by rows of a source tensor, in the order of its targets."""
    if layout == "as is":
        return [source]
    transposed = source.swapaxes(-1, -2)
    if layout == "transposed":
        return [transposed]
    width = transposed.shape[1] // 2
    return [transposed[:, :width], transposed[:, width:]]


def model_shapes(layout: Layout, source: tuple[int, ...]) -> list[tuple[int, ...]] | None:
    """Shapes of what `lay_out` yields; None if the source's shape cannot have this layout."""
    if layout == "as is":
        return [source]
    if len(source) != 3:
        return None
    experts, inputs, outputs = source
    if layout == "transposed":
        return [(experts, outputs, inputs)]
    return None if outputs % 2 else [(experts, outputs // 2, inputs)] * 2
