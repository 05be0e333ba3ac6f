"""Linear layers of the vision tower and the projector, whose inputs are always many rows."""

import mlx.core as mx
from mlx import nn

SLICE_ROWS = 128  # of the input; measured (docs/performance.md)


class Linear(nn.Linear):
    """As nn.Linear, but multiplies float32 on the CPU one slice of rows at a time.

    The reference BLAS of MLX's Linux wheels passes over all of one factor for each row of the
    other, and is fast if the sums lie side by side. Here the former factor is a transposed slice of
    the input, small enough to stay in the processor's cache.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """[…, inputs] → […, outputs]"""
        if mx.default_device() != mx.cpu or not x.dtype == self.weight.dtype == mx.float32:
            return super().__call__(x)
        rows = x.reshape(-1, x.shape[-1])
        slices = [
            self._columns(mx.contiguous(rows[start : start + SLICE_ROWS].T)).T
            for start in range(0, len(rows), SLICE_ROWS)
        ]
        return mx.concatenate(slices).reshape(*x.shape[:-1], -1)

    def _columns(self, x: mx.array) -> mx.array:
        """[inputs, rows] → [outputs, rows]"""
        if "bias" in self:
            return mx.addmm(self.bias[:, None], self.weight, x)
        return self.weight @ x
