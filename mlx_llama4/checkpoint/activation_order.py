"""compressed-tensors' integers in activation order: `weight_g_idx` gives each column its group.

MLX's groups are neighbours. So the weights are decoded, unless the order is the trivial one.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlx_llama4.checkpoint.compressed import PackedIntegers
from mlx_llama4.checkpoint.safetensors import Checkpoint, StoredTensor
from mlx_llama4.checkpoint.sources import Shape
from mlx_llama4.errors import CheckpointError

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True)
class OrderedIntegers:
    """A tensor packed by compressed-tensors whose groups are not neighbours."""

    integers: PackedIntegers
    order: StoredTensor  # I32 [in]: the group of each column
    quantization = None

    @property
    def targets(self) -> tuple[str, ...]:
        return self.integers.targets

    @property
    def shapes(self) -> list[Shape] | None:
        shapes = self.integers.shapes
        return shapes if shapes and self.order.shape == (shapes[0][1],) else None

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return (*self.integers.tensors, self.order)

    def read(self, checkpoint: Checkpoint, start: int, stop: int, dtype: str) -> list[np.ndarray]:
        order = checkpoint.read(self.order)
        columns = order.view(np.int32)
        if columns.min() < 0 or columns.max() >= self.integers.num_groups:
            raise CheckpointError(
                f"{self.order.file}: {self.order.name} names groups that are not there; "
                "download it again"
            )
        return [*self.integers.read(checkpoint, start, stop, dtype), order]

    def decode(self, data: list[np.ndarray], start: int, stop: int) -> "list[mx.array]":
        import mlx.core as mx

        codes, scales, points = self.integers.parts(data[:-1], start, stop)
        order = mx.array(data[-1].view(np.int32))
        return [(codes - points[:, order]) * scales[:, order]]


def is_trivial(checkpoint: Checkpoint, order: StoredTensor, num_groups: int) -> bool:
    """Are the groups neighbours of equal size? Unknown, so False, while the file is not here."""
    if not order.file.is_file() or len(order.shape) != 1 or not num_groups:
        return False
    columns = np.arange(order.shape[0])
    expected = columns // max(1, order.shape[0] // num_groups)
    return bool(np.array_equal(checkpoint.read(order).view(np.int32), expected))
