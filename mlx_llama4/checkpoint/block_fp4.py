"""4-bit floats (e2m1) in groups with a scale of 8 bits each: NVFP4 and MXFP4, two codes a byte.

NVFP4 has groups of 16 with scales in e4m3, and one more scale for the whole tensor, in float32.
MLX's nvfp4 mode has no place for that one: its matrix products take codes and scales alone, and
products of the two scales have more digits than e4m3 holds. So NVFP4 is decoded. MXFP4 has groups
of 32 with scales in e8m0, powers of two, and nothing else. That is MLX's mxfp4, byte for byte.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mlx_llama4.checkpoint.arrays import as_array, check_fit, check_products, misfit
from mlx_llama4.checkpoint.fp8 import LARGEST_E4M3, has_nan, split_targets
from mlx_llama4.checkpoint.mlx_packed import MlxPacked
from mlx_llama4.checkpoint.safetensors import Checkpoint, StoredTensor
from mlx_llama4.checkpoint.sources import Shape
from mlx_llama4.quantization import FIXED_MODES

if TYPE_CHECKING:
    import mlx.core as mx

GROUP_SIZE = 16
LARGEST_E2M1 = 6.0
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # the eighth bit's half of the codes: negated
WORD_BYTES = 4


@dataclass(frozen=True)
class NvFloat4:
    """A matrix in NVFP4, as ModelOpt and compressed-tensors store it."""

    target: str
    packed: StoredTensor  # U8 [out, in / 2]; the first of two codes in the lower half
    scale: StoredTensor  # F8_E4M3 [out, in / 16]
    whole: StoredTensor  # F32, one for all
    divides: bool  # is `whole` the reciprocal, as compressed-tensors stores it?
    quantization = None

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)

    @property
    def shapes(self) -> list[Shape] | None:
        if len(self.packed.shape) != 2 or self.whole.shape not in ((), (1,), (1, 1)):
            return None
        out, width = self.packed.shape[0], 2 * self.packed.shape[1]
        fitting = width % GROUP_SIZE == 0 and self.scale.shape == (out, width // GROUP_SIZE)
        return [(out, width)] if fitting else None

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return (self.packed, self.scale, self.whole)

    def read(self, checkpoint: Checkpoint, start: int, stop: int, dtype: str) -> list[np.ndarray]:
        data = [checkpoint.read(one, start, stop) for one in (self.packed, self.scale)]
        data.append(checkpoint.read(self.whole))
        if has_nan(data[1]):
            raise misfit(self.scale, dtype)
        check_whole(data[2], self.whole, self.divides, dtype)
        return data

    def decode(self, data: list[np.ndarray], start: int, stop: int) -> "list[mx.array]":
        import mlx.core as mx

        rows = stop - start
        codes = mx.array(data[0].reshape(rows, -1, 1))
        values = e2m1_values(mx.concatenate([codes & 15, codes >> 4], axis=-1))
        scales = mx.from_fp8(mx.array(data[1].reshape(rows, -1)), mx.float32)
        whole = as_array(data[2], "F32", (1,))
        scales = scales / whole if self.divides else scales * whole
        return [values.reshape(rows, -1) * mx.repeat(scales, GROUP_SIZE, axis=-1)]


@dataclass(frozen=True)
class StackedNvFloat4:
    """Stacked experts in NVFP4, as ModelOpt stores them: [experts, in, out], gate and up side by
    side. Codes and scales run along the inputs, as in a single matrix.
    """

    targets: tuple[str, ...]
    packed: StoredTensor  # U8 [experts, in / 2, out]
    scale: StoredTensor  # F8_E4M3 [experts, in / 16, out]
    whole: StoredTensor  # F32, one for all or one for each expert
    quantization = None

    @property
    def shapes(self) -> list[Shape] | None:
        if len(self.packed.shape) != 3:
            return None
        experts, halves, out = self.packed.shape
        count = len(self.targets)
        fitting = (
            2 * halves % GROUP_SIZE == 0
            and out % count == 0
            and self.scale.shape == (experts, 2 * halves // GROUP_SIZE, out)
            and self.whole.shape in ((), (1,), (experts,), (experts, 1), (experts, 1, 1))
        )
        return [(experts, out // count, 2 * halves)] * count if fitting else None

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return (self.packed, self.scale, self.whole)

    def read(self, checkpoint: Checkpoint, start: int, stop: int, dtype: str) -> list[np.ndarray]:
        data = [checkpoint.read(one, start, stop) for one in (self.packed, self.scale)]
        each = self.whole.shape[:1] == self.packed.shape[:1]
        data.append(checkpoint.read(self.whole, *((start, stop) if each else (0, 1))))
        if has_nan(data[1]):
            raise misfit(self.scale, dtype)
        check_whole(data[2], self.whole, False, dtype)
        return data

    def decode(self, data: list[np.ndarray], start: int, stop: int) -> "list[mx.array]":
        import mlx.core as mx

        experts, out = stop - start, self.packed.shape[2]
        codes = mx.array(data[0].reshape(experts, -1, 1, out))
        values = e2m1_values(mx.concatenate([codes & 15, codes >> 4], axis=2))
        scales = mx.from_fp8(mx.array(data[1].reshape(experts, -1, out)), mx.float32)
        scales = scales * as_array(data[2], "F32", (-1, 1, 1))
        values = values.reshape(experts, -1, out) * mx.repeat(scales, GROUP_SIZE, axis=1)
        return split_targets(values, len(self.targets))


def mx_float4(target: str, packed: StoredTensor, scale: StoredTensor) -> MlxPacked:
    """A matrix in MXFP4. packed: U8 [out, in / 2]. scale: U8 [out, in / 32], e8m0."""
    words = packed
    if packed.dtype == "U8" and len(packed.shape) == 2 and packed.shape[1] % WORD_BYTES == 0:
        words = replace(packed, dtype="U32", shape=(packed.shape[0], packed.shape[1] // WORD_BYTES))
    return MlxPacked(target, words, scale, None, FIXED_MODES["mxfp4"])


def e2m1_values(codes: "mx.array") -> "mx.array":
    """Codes of 4 bits, uint8 → float32."""
    import mlx.core as mx

    table = mx.array([*E2M1, *(-value for value in E2M1)], mx.float32)
    return table[codes]


def check_whole(data: np.ndarray, tensor: StoredTensor, divides: bool, dtype: str) -> None:
    """Raises RunError if a tensor's own scale, float32, makes values that are not finite."""
    check_fit(data, tensor, "float32")
    scale = data.view(np.float32)
    if divides:
        if not np.all(scale):
            raise misfit(tensor, dtype)
        with np.errstate(over="ignore"):
            data = (1 / scale).view(np.uint8)
        check_fit(data, tensor, "float32")
    check_products(data, tensor, LARGEST_E4M3 * LARGEST_E2M1, dtype)
