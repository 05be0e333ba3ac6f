"""The gated MLP of dense layers and of shared experts."""

from collections.abc import Iterator
from functools import partial

import mlx.core as mx
from mlx import nn

from mlx_llama4.memory import FEED_FORWARD_ROWS


def row_slices(rows: int) -> Iterator[tuple[int, int]]:
    """Starts and stops of slices whose inner activations fit in memory together."""
    for start in range(0, rows, FEED_FORWARD_ROWS):
        yield start, min(start + FEED_FORWARD_ROWS, rows)


@partial(mx.compile, shapeless=True)
def gated(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) · up in one kernel."""
    return nn.silu(gate) * up


class FeedForward(nn.Module):
    """down(silu(gate(x)) · up(x)), [..., hidden] → [..., hidden]"""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= FEED_FORWARD_ROWS:
            return self._apply(x)
        pieces: list[mx.array] = []
        for start, stop in row_slices(len(rows)):
            piece = rows[start:stop]
            # One after the other, or MLX would hold the inner activations of many slices at once.
            pieces.append(self._apply(mx.depends(piece, pieces[-1]) if pieces else piece))
        return mx.concatenate(pieces).reshape(x.shape)

    def _apply(self, x: mx.array) -> mx.array:
        return self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))
