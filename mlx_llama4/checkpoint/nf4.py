"""bitsandbytes' 4-bit weights, nf4 or fp4: places in a table of 16 numbers, times a scale for each
block of neighbours.

A matrix is stored as one row after another, two codes a byte, the first in the upper half. The
scales may be quantized themselves ("double quantization"): 8-bit places in a table of 256 numbers,
with a scale for each 256 of them and one mean for all, which is in a small JSON text.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_llama4.checkpoint.safetensors import Checkpoint, StoredTensor
from mlx_llama4.checkpoint.sources import Shape
from mlx_llama4.errors import CheckpointError
from mlx_llama4.files.json_file import parse_json

if TYPE_CHECKING:
    import mlx.core as mx

KINDS = ("nf4", "fp4")


@dataclass(frozen=True)
class TableCodes:
    """A matrix quantized by bitsandbytes to 4 bits."""

    target: str
    codes: StoredTensor  # U8 [out · in / 2, 1]
    absmax: StoredTensor  # a scale for each block: F32, or U8 if they are quantized
    table: StoredTensor  # F32 [16]
    state: StoredTensor  # U8, JSON: shape, blocksize, nested_blocksize, nested_offset
    nested_absmax: StoredTensor | None  # F32
    nested_table: StoredTensor | None  # F32 [256]
    shape: Shape  # the model tensor's
    quantization = None

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)

    @property
    def shapes(self) -> list[Shape] | None:
        size = math.prod(self.shape)
        fitting = (
            len(self.shape) == 2
            and self.shape[1] % 2 == 0
            and 2 * math.prod(self.codes.shape) == size
            and self.table.shape == (16,)
            and (self.nested_table is None or self.nested_table.shape == (256,))
        )
        return [self.shape] if fitting else None

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        nested = (self.nested_absmax, self.nested_table)
        return (self.codes, self.absmax, self.table, self.state, *filter(None, nested))

    def read(self, checkpoint: Checkpoint, start: int, stop: int, dtype: str) -> list[np.ndarray]:
        whole = [checkpoint.read(one) for one in self.tensors[1:]]
        self._check(whole)
        half = self.shape[1] // 2
        codes = replace(self.codes, shape=(math.prod(self.codes.shape),))
        return [checkpoint.read(codes, start * half, stop * half), *whole]

    def decode(self, data: list[np.ndarray], start: int, stop: int) -> "list[mx.array]":
        import mlx.core as mx

        codes, absmax, table, state, *nested = data
        settings = self._settings(state)
        scales = mx.array(absmax) if nested else mx.array(absmax.view(np.float32))
        if nested:
            factors, numbers = (mx.array(one.view(np.float32)) for one in nested)
            every = mx.repeat(factors, settings["nested_blocksize"])[: len(absmax)]
            scales = numbers[scales] * every + settings["nested_offset"]
        packed = mx.array(codes)
        places = mx.stack([packed >> 4, packed & 15], axis=-1).reshape(-1)
        width = self.shape[1]
        blocks = mx.arange(start * width, stop * width) // settings["blocksize"]
        values = mx.array(table.view(np.float32))[places] * scales[blocks]
        return [values.reshape(stop - start, width)]

    def _settings(self, state: np.ndarray) -> dict[str, Any]:
        try:
            found = parse_json(state.tobytes())
        except (ValueError, RecursionError):
            found = None
        return found if isinstance(found, dict) else {}

    def _check(self, whole: list[np.ndarray]) -> None:
        """Raises CheckpointError if the settings do not fit the tensors."""
        settings = self._settings(whole[2])
        block, size = settings.get("blocksize"), math.prod(self.shape)
        fitting = (
            settings.get("quant_type") in KINDS
            and settings.get("shape") == list(self.shape)
            and _covers(block, size, self.absmax)
        )
        if self.nested_absmax is not None:
            count, offset = math.prod(self.absmax.shape), settings.get("nested_offset")
            fitting = (
                fitting
                and isinstance(offset, float | int)
                and math.isfinite(offset)
                and _covers(settings.get("nested_blocksize"), count, self.nested_absmax)
            )
        if not fitting:
            raise CheckpointError(
                f"{self.state.file}: {self.state.name} does not describe {self.codes.name}; "
                "download it again"
            )


def _covers(block: object, size: int, scales: StoredTensor) -> bool:
    """Are there as many scales as blocks of this size?"""
    return isinstance(block, int) and block > 0 and scales.shape == (-(-size // block),)
