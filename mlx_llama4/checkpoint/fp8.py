"""FP8 weights: e4m3 values times one scale per tensor, per row, or per block."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlx_llama4.checkpoint.arrays import BLOCK_ITEMS, as_array, check_fit, check_products, misfit
from mlx_llama4.checkpoint.safetensors import Checkpoint, StoredTensor
from mlx_llama4.checkpoint.sources import Shape

if TYPE_CHECKING:
    import mlx.core as mx

LARGEST_E4M3 = 448.0
NAN_E4M3 = 0x7F  # below the sign; e4m3fn has no infinity


@dataclass(frozen=True)
class Float8:
    """A tensor of FP8 values with its scales."""

    target: str
    weight: StoredTensor  # F8_E4M3 [out, in]
    scale: StoredTensor  # one for all, [out], [out, 1], or one for each block
    block: tuple[int, int] | None = None  # rows and columns of a block
    quantization = None

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)

    @property
    def shapes(self) -> list[Shape] | None:
        return [self.weight.shape] if self._scale_shape is not None else None

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return (self.weight, self.scale)

    @property
    def _scale_shape(self) -> tuple[int, int] | None:
        """The scales as [1 or rows of blocks, 1 or columns of blocks]; None if they do not fit."""
        if len(self.weight.shape) != 2:
            return None
        out, width = self.weight.shape
        if self.block is not None:
            blocks = (-(-out // self.block[0]), -(-width // self.block[1]))
            return blocks if self.scale.shape == blocks else None
        if self.scale.shape in ((), (1,), (1, 1)):
            return (1, 1)
        return (out, 1) if self.scale.shape in ((out,), (out, 1)) else None

    def read(self, checkpoint: Checkpoint, start: int, stop: int, dtype: str) -> list[np.ndarray]:
        data = checkpoint.read(self.weight, start, stop)
        scale = checkpoint.read(self.scale, *self._scale_rows(start, stop))
        if has_nan(data):
            raise misfit(self.weight, dtype)
        check_fit(scale, self.scale, dtype)
        check_products(scale, self.scale, LARGEST_E4M3, dtype)
        return [data, scale]

    def decode(self, data: list[np.ndarray], start: int, stop: int) -> "list[mx.array]":
        import mlx.core as mx

        codes, scale = data
        width = self.weight.shape[1]
        values = mx.from_fp8(mx.array(codes.reshape(stop - start, width)), mx.float32)
        _, columns = self._grid()
        scales = as_array(scale, self.scale.dtype, (-1, columns)).astype(mx.float32)
        if self.block is not None:
            rows, cells = self.block
            first = start - start // rows * rows
            scales = mx.repeat(scales, rows, axis=0)[first : first + stop - start]
            scales = mx.repeat(scales, cells, axis=1)[:, :width]
        return [values * scales]

    def _grid(self) -> tuple[int, int]:
        """The scales' shape, when rows are read: by then `shapes` was checked."""
        if (shape := self._scale_shape) is None:
            raise ValueError(f"{self.scale.name} does not fit {self.weight.name}")
        return shape

    def _scale_rows(self, start: int, stop: int) -> tuple[int, int]:
        rows, _ = self._grid()
        if rows == 1:
            return (0, 1)
        size = self.block[0] if self.block is not None else 1
        return (start // size, -(-stop // size))


@dataclass(frozen=True)
class StackedFloat8:
    """Stacked experts in FP8, as ModelOpt stores them: [experts, in, out], gate and up side by
    side.
    """

    targets: tuple[str, ...]
    weight: StoredTensor  # F8_E4M3 [experts, in, out]
    scale: StoredTensor  # one for all, for each expert, or for each expert and output
    quantization = None

    @property
    def shapes(self) -> list[Shape] | None:
        if len(self.weight.shape) != 3 or self._scale_shape is None:
            return None
        experts, width, out = self.weight.shape
        count = len(self.targets)
        return [(experts, out // count, width)] * count if out % count == 0 else None

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return (self.weight, self.scale)

    @property
    def _scale_shape(self) -> tuple[int, int] | None:
        """The scales as [1 or experts, 1 or outputs]; None if they do not fit."""
        experts, _, out = self.weight.shape
        shape = self.scale.shape
        if shape in ((), (1,), (1, 1), (1, 1, 1)):
            return (1, 1)
        if shape in ((experts,), (experts, 1), (experts, 1, 1)):
            return (experts, 1)
        return (experts, out) if shape in ((experts, out), (experts, 1, out)) else None

    def read(self, checkpoint: Checkpoint, start: int, stop: int, dtype: str) -> list[np.ndarray]:
        data = checkpoint.read(self.weight, start, stop)
        rows, _ = self._scale_shape or (1, 1)
        scale = checkpoint.read(self.scale, *((start, stop) if rows > 1 else (0, 1)))
        if has_nan(data):
            raise misfit(self.weight, dtype)
        check_fit(scale, self.scale, dtype)
        check_products(scale, self.scale, LARGEST_E4M3, dtype)
        return [data, scale]

    def decode(self, data: list[np.ndarray], start: int, stop: int) -> "list[mx.array]":
        import mlx.core as mx

        codes, scale = data
        codes = codes.reshape(stop - start, *self.weight.shape[1:])
        values = mx.from_fp8(mx.array(codes), mx.float32)
        _, columns = self._scale_shape or (1, 1)
        scales = as_array(scale, self.scale.dtype, (-1, 1, columns)).astype(mx.float32)
        return split_targets((values * scales), len(self.targets))


def split_targets(experts: "mx.array", count: int) -> "list[mx.array]":
    """[experts, in, count · out] → the tensors side by side in it, each [experts, out, in]."""
    outputs = experts.swapaxes(1, 2)
    size = outputs.shape[1] // count
    return [outputs[:, index * size : (index + 1) * size] for index in range(count)]


def has_nan(codes: np.ndarray) -> bool:
    """Is any code a NaN? codes: e4m3, uint8."""
    blocks = (codes[start : start + BLOCK_ITEMS] for start in range(0, len(codes), BLOCK_ITEMS))
    return any(((block & NAN_E4M3) == NAN_E4M3).any() for block in blocks)
