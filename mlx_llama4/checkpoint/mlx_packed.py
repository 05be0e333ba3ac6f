"""Tensors packed by MLX, whether here, by mlx-lm or by mlx-vlm."""

from dataclasses import dataclass

import numpy as np

from mlx_llama4.checkpoint.arrays import as_array, check_fit, misfit
from mlx_llama4.checkpoint.fp8 import has_nan
from mlx_llama4.checkpoint.safetensors import Checkpoint, StoredTensor
from mlx_llama4.checkpoint.sources import PackedRows, Shape
from mlx_llama4.quantization import Quantization

# Modes other than affine have scales in e8m0 (powers of two) or e4m3; neither has an infinity.
NAN_E8M0 = 0xFF


@dataclass(frozen=True)
class MlxPacked:
    """A tensor packed by MLX."""

    target: str
    weight: StoredTensor  # U32 […, in · bits / 32]
    scales: StoredTensor  # […, in / group_size]; U8 in modes other than affine
    biases: StoredTensor | None  # as the scales; only in affine mode
    quantization: Quantization

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)

    @property
    def shapes(self) -> list[Shape] | None:
        if not self.weight.shape:
            return None
        *outer, words = self.weight.shape
        width = words * 32 // self.quantization.bits
        groups = (*outer, width // self.quantization.group_size)
        parts = [self.scales] if self.biases is None else [self.scales, self.biases]
        fitting = (
            words * 32 % self.quantization.bits == 0
            and width % self.quantization.group_size == 0
            and all(part.shape == groups for part in parts)
        )
        return [(*outer, width)] if fitting else None

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return tuple(filter(None, (self.weight, self.scales, self.biases)))

    def read(self, checkpoint: Checkpoint, start: int, stop: int, dtype: str) -> list[np.ndarray]:
        data = [checkpoint.read(tensor, start, stop) for tensor in self.tensors]
        for tensor, part in zip(self.tensors[1:], data[1:], strict=True):
            if tensor.dtype != "U8":
                check_fit(part, tensor, dtype)
            elif has_nan(part) if self.quantization.mode == "nvfp4" else (part == NAN_E8M0).any():
                raise misfit(tensor, dtype)
        if self.quantization.mode == "mxfp8" and has_nan(data[0]):
            raise misfit(self.weight, dtype)
        return data

    def decode(self, data: list[np.ndarray], start: int, stop: int) -> "list[PackedRows]":
        import mlx.core as mx

        shapes = [(stop - start, *tensor.shape[1:]) for tensor in self.tensors]
        weight = mx.array(data[0].view(np.uint32).reshape(shapes[0]))
        if self.biases is None:
            scales = mx.array(data[1].reshape(shapes[1]))
            return [PackedRows(weight, scales, None, self.quantization)]
        scales = as_array(data[1], self.scales.dtype, shapes[1])
        biases = as_array(data[2], self.biases.dtype, shapes[2])
        return [PackedRows(weight, scales, biases, self.quantization)]
