"""Joins the rows of a model tensor that several ranks share.

Model parallelism cuts an axis of a tensor into equal parts, one for each rank. A rank's part is a
source of its own.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlx_llama4.checkpoint.safetensors import Checkpoint, StoredTensor
from mlx_llama4.checkpoint.sources import Shape, WeightSource, dense, num_rows

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True)
class Joined:
    """Dense parts of one shape that follow each other along an axis of the target."""

    target: str
    parts: tuple[WeightSource, ...]
    axis: int
    quantization = None

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)

    @property
    def shapes(self) -> list[Shape] | None:
        found = [part.shapes for part in self.parts]
        if found[0] is None or any(shapes != found[0] for shapes in found):
            return None
        shape = list(found[0][0])
        if self.axis >= len(shape):
            return None
        shape[self.axis] *= len(self.parts)
        return [tuple(shape)]

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return tuple(tensor for part in self.parts for tensor in part.tensors)

    def read(self, checkpoint: Checkpoint, start: int, stop: int, dtype: str) -> list[np.ndarray]:
        return [
            data
            for part, first, last in self._pieces(start, stop)
            for data in part.read(checkpoint, first, last, dtype)
        ]

    def decode(self, data: list[np.ndarray], start: int, stop: int) -> "list[mx.array]":
        import mlx.core as mx

        pieces = self._pieces(start, stop)
        count = len(data) // len(pieces)
        arrays = [
            dense(part.decode(data[index * count : (index + 1) * count], first, last)[0])
            for index, (part, first, last) in enumerate(pieces)
        ]
        return [mx.concatenate(arrays, axis=self.axis)]

    def _pieces(self, start: int, stop: int) -> list[tuple[WeightSource, int, int]]:
        """The parts that have some of these rows, each with the range of its own rows."""
        if self.axis:
            return [(part, start, stop) for part in self.parts]
        rows = num_rows(self.parts[0])
        return [
            (part, max(start - index * rows, 0), min(stop - index * rows, rows))
            for index, part in enumerate(self.parts)
            if start < (index + 1) * rows and stop > index * rows
        ]


@dataclass(frozen=True)
class Transposed:
    """A dense source stored [in, out]. It is small, so any of its rows read it whole."""

    source: WeightSource
    quantization = None

    @property
    def targets(self) -> tuple[str, ...]:
        return self.source.targets

    @property
    def shapes(self) -> list[Shape] | None:
        shapes = self.source.shapes
        return [shape[::-1] for shape in shapes] if shapes and len(shapes[0]) == 2 else None

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return self.source.tensors

    def read(self, checkpoint: Checkpoint, start: int, stop: int, dtype: str) -> list[np.ndarray]:
        return self.source.read(checkpoint, 0, num_rows(self.source), dtype)

    def decode(self, data: list[np.ndarray], start: int, stop: int) -> "list[mx.array]":
        arrays = self.source.decode(data, 0, num_rows(self.source))
        return [dense(array).T[start:stop] for array in arrays]
