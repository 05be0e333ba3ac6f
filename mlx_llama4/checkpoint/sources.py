"""Where the rows of a model tensor come from, whatever the source's format.

A row is one entry of the first axis: an expert of a stacked tensor, or an output feature. Any range
of rows can be read, decoded and written by itself, so memory depends on the size of a slice, never
on that of a tensor.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mlx_llama4.checkpoint.arrays import as_array, check_fit
from mlx_llama4.checkpoint.layouts import Layout, model_shapes, transposed
from mlx_llama4.checkpoint.safetensors import Checkpoint, StoredTensor
from mlx_llama4.quantization import Quantization

if TYPE_CHECKING:
    import mlx.core as mx

Shape = tuple[int, ...]

# Rows are read in blocks of about this size; a single expert may be larger.
BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class PackedRows:
    """Quantized rows, packed as MLX packs them; see `quantized_tensors`."""

    weight: "mx.array"
    scales: "mx.array"
    biases: "mx.array | None"
    quantization: Quantization

    def dense(self) -> "mx.array":
        """The rows' values in float32, since products have more digits than 16 bits hold."""
        import mlx.core as mx

        if self.biases is None:
            scales, biases = self.scales, None
        else:
            scales, biases = self.scales.astype(mx.float32), self.biases.astype(mx.float32)
        values = mx.dequantize(
            self.weight,
            scales,
            biases,
            self.quantization.group_size,
            self.quantization.bits,
            mode=self.quantization.mode,
        )
        return values.astype(mx.float32)


class WeightSource(Protocol):
    """One or several model tensors with the same number of rows, which are read together."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The model tensors' names."""
        ...

    @property
    def shapes(self) -> list[Shape] | None:
        """Their shapes, as the stored shapes imply them; None if those make no sense."""
        ...

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The stored tensors that make them up."""
        ...

    @property
    def quantization(self) -> Quantization | None:
        """The packing in which rows come; None if they are dense."""
        ...

    def read(self, checkpoint: Checkpoint, start: int, stop: int, dtype: str) -> list[np.ndarray]:
        """The bytes, uint8, of each tensor that rows start … stop - 1 need.

        Runs beside `decode` in a thread of its own, so it may use numpy but makes no MLX arrays.
        Raises RunError for values that are not finite in `dtype`.
        """
        ...

    def decode(
        self, data: list[np.ndarray], start: int, stop: int
    ) -> "Sequence[mx.array | PackedRows]":
        """What `read` returned → rows start … stop - 1 of each target, lazily."""
        ...


@dataclass(frozen=True)
class Plain:
    """A stored float tensor."""

    targets: tuple[str, ...]
    tensor: StoredTensor
    layout: Layout = "as is"
    quantization = None

    @property
    def shapes(self) -> list[Shape] | None:
        return model_shapes(self.layout, self.tensor.shape)

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return (self.tensor,)

    def read(self, checkpoint: Checkpoint, start: int, stop: int, dtype: str) -> list[np.ndarray]:
        data = checkpoint.read(self.tensor, start, stop)
        check_fit(data, self.tensor, dtype)
        if self.layout != "as is":
            width = np.uint32 if self.tensor.dtype == "F32" else np.uint16
            shaped = data.view(width).reshape(stop - start, *self.tensor.shape[1:])
            data = transposed(shaped).reshape(-1).view(np.uint8)
        return [data]

    def decode(self, data: list[np.ndarray], start: int, stop: int) -> "list[mx.array]":
        count = len(self.targets)
        if (shapes := self.shapes) is None:
            raise ValueError(f"{self.tensor.name} has no shape to be {self.layout}")
        _, *inner = shapes[0]
        rows = as_array(data[0], self.tensor.dtype, (stop - start, count, *inner))
        return [rows[:, index] for index in range(count)]


@dataclass(frozen=True)
class OneByOne:
    """A stacked tensor whose rows, the experts, are stored as separate tensors."""

    experts: tuple[WeightSource, ...]
    target: str

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,)

    @cached_property  # like `tensors`: Maverick has 128 experts, and each slice asks for all
    def shapes(self) -> list[Shape] | None:
        found = [expert.shapes for expert in self.experts]
        if found[0] is None or any(shapes != found[0] for shapes in found):
            return None
        return [(len(self.experts), *found[0][0])]

    @cached_property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return tuple(tensor for expert in self.experts for tensor in expert.tensors)

    @property
    def quantization(self) -> Quantization | None:
        found = {expert.quantization for expert in self.experts}
        return found.pop() if len(found) == 1 else None

    def read(self, checkpoint: Checkpoint, start: int, stop: int, dtype: str) -> list[np.ndarray]:
        return [
            data
            for expert in self.experts[start:stop]
            for data in expert.read(checkpoint, 0, num_rows(expert), dtype)
        ]

    def decode(
        self, data: list[np.ndarray], start: int, stop: int
    ) -> "list[mx.array | PackedRows]":
        parts = iter(data)
        rows = [
            expert.decode(list(itertools.islice(parts, len(expert.tensors))), 0, num_rows(expert))[
                0
            ]
            for expert in self.experts[start:stop]
        ]
        return [_stack(rows)]


def num_rows(source: WeightSource) -> int:
    return source.shapes[0][0] if source.shapes else 0


def row_bytes(source: WeightSource) -> int:
    """Bytes read for a row, rounded up."""
    return -(-sum(tensor.nbytes for tensor in source.tensors) // max(num_rows(source), 1))


def dense(rows: "mx.array | PackedRows") -> "mx.array":
    """The rows' values, unpacked if they are packed."""
    return rows.dense() if isinstance(rows, PackedRows) else rows


def _stack(rows: "list[mx.array | PackedRows]") -> "mx.array | PackedRows":
    """Rows on one grid stay packed; any others become dense."""
    import mlx.core as mx

    packed = [row for row in rows if isinstance(row, PackedRows)]
    if len(packed) < len(rows) or any(row.quantization != packed[0].quantization for row in packed):
        return mx.stack([dense(row) for row in rows])
    biases = [row.biases for row in packed if row.biases is not None]
    return PackedRows(
        mx.stack([row.weight for row in packed]),
        mx.stack([row.scales for row in packed]),
        mx.stack(biases) if biases else None,
        packed[0].quantization,
    )
