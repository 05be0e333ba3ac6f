"""From the layout of a source tensor to that of the model's, for any range of its rows.

A layout never mixes rows of the first axis (experts, or output features), so that each range
can be read, laid out and written on its own.
"""

import mlx.core as mx

from mlx_llama4.convert.names import Layout


def lay_out(layout: Layout, source: mx.array) -> list[mx.array]:
    """Model tensors held by rows of a source tensor, in the order of its targets."""
    if layout == "as is":
        return [source]
    # Stacked experts: [experts, in, out] → [experts, out, in]
    transposed = source.swapaxes(-1, -2)
    if layout == "transposed":
        return [transposed]
    return mx.split(transposed, 2, axis=1)  # gate first, then up


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
