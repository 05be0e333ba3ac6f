"""Slots for experts: arrays that stay at one address, so that reads can go straight into them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_llama4.files.mlx_arrays import MLX_DTYPES
from mlx_llama4.model.expert_linear import ExpertLinear, Experts, QuantizedExpertLinear
from mlx_llama4.offload.expert_store import ExpertTensor, Reading
from mlx_llama4.quantization import Quantization


class SlotBank:
    """Arrays [slots, out, columns] for experts of one packing.

    MLX does not see writes into them: whatever computes with a slot must be evaluated before the
    slot is overwritten.
    """

    def __init__(self, tensors: Sequence[ExpertTensor], slots: int):
        arrays: dict[str, dict[str, mx.array]] = {}
        self._places: list[np.ndarray] = []
        for tensor in tensors:
            array, place = _allocate(tensor, slots)
            arrays.setdefault(tensor.projection, {})[tensor.name] = array
            self._places.append(place)
        packings = {tensor.projection: tensor.quantization for tensor in tensors}
        self.experts = Experts(
            **{name: _linear(packings[name], **parts) for name, parts in arrays.items()}
        )
        self.slots = [
            Slot(self, index, [place[index] for place in self._places]) for index in range(slots)
        ]


@dataclass
class Slot:
    """Room for one expert."""

    bank: SlotBank
    index: int
    places: list[np.ndarray]  # of each tensor [rows, columns], as ExpertStore.read takes them
    reading: Reading | None = None  # the last read into it
    users: list[mx.array] = field(default_factory=list)  # outputs that may not be evaluated yet

    def vacate(self) -> None:
        """Returns when nothing reads or writes the slot any more."""
        if self.reading is not None:
            self.reading.abandon()
            self.reading = None
        if self.users:
            mx.eval(self.users)
            self.users.clear()


def _allocate(tensor: ExpertTensor, slots: int) -> tuple[mx.array, np.ndarray]:
    """An array, and a view of its memory [slots, rows, columns] as integers."""
    # The layout of lay_out_for_cpu, for the same order of summation and so the same sums.
    column_major = tensor.quantization is None and mx.default_device() == mx.cpu
    shape = (tensor.rows, tensor.columns)
    laid_out = reversed(shape) if column_major else shape
    base = mx.zeros((slots, *laid_out), MLX_DTYPES[tensor.dtype])
    mx.eval(base)
    # numpy has no bfloat16; an MLX view shares the memory.
    place = np.asarray(base if tensor.dtype in ("U32", "U8") else base.view(_bits(tensor.dtype)))
    if column_major:
        base, place = base.swapaxes(-1, -2), place.swapaxes(-1, -2)
    return base, place


def _bits(dtype: str) -> mx.Dtype:
    return mx.uint32 if dtype == "F32" else mx.uint16


def _linear(
    quantization: Quantization | None, weight: mx.array, **scales: mx.array
) -> ExpertLinear | QuantizedExpertLinear:
    if quantization is not None:
        return QuantizedExpertLinear(quantization, weight, **scales)
    return ExpertLinear(weight)
