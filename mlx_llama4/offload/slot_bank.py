"""Room for experts in arrays that stay where they are, so that reads can land in them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_llama4.model.expert_linear import ExpertLinear, Experts, QuantizedExpertLinear
from mlx_llama4.offload.expert_store import ExpertTensor, Reading
from mlx_llama4.quantization import Quantization

DTYPES = {
    "U32": mx.uint32,
    "U8": mx.uint8,
    "F32": mx.float32,
    "BF16": mx.bfloat16,
    "F16": mx.float16,
}


class SlotBank:
    """Arrays of a number of slots, [slots, out, columns], all for experts of one packing.

    MLX knows nothing of what is written into them: whatever computes with a slot must have been
    evaluated before.
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
    """Room for one expert. places: of each tensor, [rows, columns], as the store writes them.
    reading: the last read into it. users: outputs that were computed with it and may not be
    evaluated yet.
    """

    bank: SlotBank
    index: int
    places: list[np.ndarray]
    reading: Reading | None = None
    users: list[mx.array] = field(default_factory=list)

    def vacate(self) -> None:
        """Return when nothing reads or writes it any more."""
        if self.reading is not None:
            self.reading.abandon()
            self.reading = None
        if self.users:
            mx.eval(self.users)
            self.users.clear()


def _allocate(tensor: ExpertTensor, slots: int) -> tuple[mx.array, np.ndarray]:
    """An array, and a view of its memory [slots, rows, columns] as integers to write bits to."""
    # As lay_out_for_cpu has it: sums in another order would be other sums.
    column_major = tensor.quantization is None and mx.default_device() == mx.cpu
    shape = (tensor.rows, tensor.columns)
    base = mx.zeros((slots, *(reversed(shape) if column_major else shape)), DTYPES[tensor.dtype])
    mx.eval(base)
    # numpy knows no bfloat16; a view has the same memory.
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
