"""How matrices are stored and multiplied on MLX's CPU backend.

MLX's wheels for Linux use the reference BLAS. Its dot products (x @ w.T with w row-major) run at
2.5 GFLOP/s, its sums of columns (the same with w column-major) at 6. Products with packed weights
run at 3.4, and unpack the weights again for each row of the input.
"""

import mlx.core as mx
from mlx import nn

from mlx_llama4.model.expert_linear import ExpertLinear
from mlx_llama4.model.linear import Linear

UNPACK_FROM = 16  # rows of the input; measured (docs/performance.md)
BLOCK_BYTES = 2**19  # of a weight, unpacked at once; unpacking it whole is 1% faster


class UnpackingLinear(nn.QuantizedLinear):
    """Unpacks its weight once for many rows of input, a block of outputs at a time."""

    def __init__(self, packed: nn.QuantizedLinear):
        nn.Module.__init__(self)
        self.group_size, self.bits, self.mode = packed.group_size, packed.bits, packed.mode
        for name, part in packed.items():
            self[name] = part
        self.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        inputs = x.shape[-1]
        if x.size < UNPACK_FROM * inputs:
            return super().__call__(x)
        columns = x.reshape(-1, inputs).T
        step = max(BLOCK_BYTES // (x.itemsize * inputs), 1)
        blocks: list[mx.array] = []
        for start in range(0, len(self.scales), step):
            codes = self.weight[start : start + step]
            # One after the other, or MLX would unpack many blocks ahead.
            codes = mx.depends(codes, blocks[-1]) if blocks else codes
            blocks.append(self._unpacked(codes, start, x.dtype) @ columns)
        output = (blocks[0] if len(blocks) == 1 else mx.concatenate(blocks)).T
        output = output.reshape(*x.shape[:-1], -1)
        return output + self.bias if "bias" in self else output

    def _unpacked(self, codes: mx.array, start: int, dtype: mx.Dtype) -> mx.array:
        """Rows of `self.weight` from `start` on → [rows, inputs]."""
        rows = slice(start, start + len(codes))
        biases = self.get("biases")
        biases = None if biases is None else biases[rows]
        packing = (self.group_size, self.bits, self.mode)
        return mx.dequantize(codes, self.scales[rows], biases, *packing, dtype=dtype)


def column_major(array: mx.array) -> mx.array:
    """The same array with its last two axes stored the other way round, lazily."""
    return mx.contiguous(array.swapaxes(-1, -2)).swapaxes(-1, -2)


def lay_out_for_cpu(model: nn.Module) -> None:
    """Stores unpacked linear weights column-major, except those of `model.linear.Linear`, which
    multiplies in another way; makes packed layers unpack for many rows.
    """
    for module in model.modules():
        for name, child in module.items():
            if isinstance(child, nn.QuantizedLinear):
                module[name] = UnpackingLinear(child)
            elif isinstance(child, nn.Linear | ExpertLinear) and not isinstance(child, Linear):
                child.weight = column_major(child.weight)
