"""compressed-tensors' `pack-quantized`: integers of 4 or 8 bits with scales, maybe zero points.

A value is (code − zero point) · scale. Without zero points the code of zero is the middle one,
2^(bits − 1). Codes are packed in the same order as in MLX's affine mode, which computes
code · scale + bias. So the codes are kept, with bias = −zero point · scale. Without zero points the
bias is a power of two times the scale, and nothing is lost.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mlx_llama4.checkpoint.arrays import as_array, check_fit, check_products
from mlx_llama4.checkpoint.safetensors import Checkpoint, StoredTensor
from mlx_llama4.checkpoint.sources import PackedRows, Shape
from mlx_llama4.quantization import Quantization

if TYPE_CHECKING:
    import mlx.core as mx

BITS = (4, 8)
MLX_GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True)
class PackedIntegers:
    """A tensor packed by compressed-tensors."""

    target: str
    packed: StoredTensor  # I32 [out, in · bits / 32]
    scale: StoredTensor  # [out, groups], [out, 1], or one for all
    zero_point: StoredTensor | None  # I32 [out · bits / 32, groups], packed along its first axis
    shape: Shape  # the model tensor's, which does not follow from `packed` alone

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)

    @cached_property
    def bits(self) -> int:
        """Bits a weight; 0 if the packed shape fits no known number."""
        if len(self.shape) != 2:
            return 0
        out, width = self.shape
        fitting = [bits for bits in BITS if self.packed.shape == (out, -(-width * bits // 32))]
        return fitting[0] if fitting else 0

    @property
    def shapes(self) -> list[Shape] | None:
        return [self.shape] if self.quantization is not None else None

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return tuple(filter(None, (self.packed, self.scale, self.zero_point)))

    @cached_property
    def quantization(self) -> Quantization | None:
        """MLX's packing on the same grid; None for shapes or groups that MLX does not know."""
        if not self.bits or len(self.scale.shape) > 2:
            return None
        out, width = self.shape
        rows, groups = self._scale_shape
        if rows not in (1, out) or not groups or width % groups:
            return None
        if self.zero_point is not None and self.zero_point.shape != (
            -(-out * self.bits // 32),
            groups,
        ):
            return None
        sizes = [size for size in MLX_GROUP_SIZES if width // groups % size == 0]
        return Quantization(sizes[0], self.bits) if sizes else None

    @property
    def _scale_shape(self) -> tuple[int, int]:
        shape = self.scale.shape
        return shape if len(shape) == 2 else (shape[0] if shape else 1, 1)

    def read(self, checkpoint: Checkpoint, start: int, stop: int, dtype: str) -> list[np.ndarray]:
        by_row = self._scale_shape[0] > 1
        scale = checkpoint.read(self.scale, *((start, stop) if by_row else (0, 1)))
        check_fit(scale, self.scale, dtype)
        check_products(scale, self.scale, 2**self.bits, dtype)
        data = [checkpoint.read(self.packed, start, stop), scale]
        if self.zero_point is not None:
            per_word = 32 // self.bits
            data.append(checkpoint.read(self.zero_point, start // per_word, -(-stop // per_word)))
        return data

    def decode(self, data: list[np.ndarray], start: int, stop: int) -> "list[PackedRows]":
        import mlx.core as mx

        rows, (_, groups) = stop - start, self._scale_shape
        weight = mx.array(data[0].view(np.uint32).reshape(rows, -1))
        # The products have more digits than 16 bits hold.
        scales = as_array(data[1], self.scale.dtype, (-1, groups)).astype(mx.float32)
        if self.zero_point is None:
            biases = -(2 ** (self.bits - 1)) * scales
        else:
            biases = -scales * self._zero_points(data[2], start, stop)
        if (quantization := self.quantization) is None:
            raise ValueError(f"{self.packed.name} is packed as MLX cannot pack")
        size = self.shape[1] // quantization.group_size

        def spread(values: mx.array) -> mx.array:
            every = mx.repeat(values, size // groups, axis=1)
            return mx.broadcast_to(every, (rows, size))

        return [PackedRows(weight, spread(scales), spread(biases), quantization)]

    @property
    def num_groups(self) -> int:
        """Groups of a row."""
        return self._scale_shape[1] if len(self.scale.shape) <= 2 else 0

    def parts(
        self, data: list[np.ndarray], start: int, stop: int
    ) -> "tuple[mx.array, mx.array, mx.array]":
        """Codes [rows, in], and each group's scale and zero point [rows or 1, groups], float32."""
        import mlx.core as mx

        words = mx.array(data[0].view(np.uint32).reshape(stop - start, -1, 1))
        shifts = mx.arange(32 // self.bits, dtype=mx.uint32) * self.bits
        codes = (words >> shifts) & mx.array(2**self.bits - 1, mx.uint32)
        codes = codes.reshape(stop - start, -1)[:, : self.shape[1]].astype(mx.float32)
        scales = as_array(data[1], self.scale.dtype, (-1, self.num_groups)).astype(mx.float32)
        if self.zero_point is None:
            return codes, scales, mx.full(scales.shape, 2 ** (self.bits - 1), mx.float32)
        return codes, scales, self._zero_points(data[2], start, stop)

    def _zero_points(self, data: np.ndarray, start: int, stop: int) -> "mx.array":
        import mlx.core as mx

        per_word = 32 // self.bits
        words = mx.array(data.view(np.uint32).reshape(-1, 1, self._scale_shape[1]))
        shifts = (mx.arange(per_word, dtype=mx.uint32) * self.bits)[None, :, None]
        points = (words >> shifts) & mx.array(2**self.bits - 1, mx.uint32)
        points = points.reshape(-1, words.shape[-1])
        first = start % per_word
        return points[first : first + stop - start].astype(mx.float32)
