"""Routed experts that are read from the disk when needed; they take the place of `Experts`.

Shapes: N routed inputs, D hidden size. The host must know what the router chose, so it waits once
in each layer, unless all of the layer's experts are in memory by then.
"""

import mlx.core as mx
import numpy as np

from mlx_llama4.model.expert_linear import SORT_FROM
from mlx_llama4.model.feed_forward import row_slices
from mlx_llama4.offload.expert_cache import LayerCache
from mlx_llama4.offload.slot_bank import Slot


class StreamedExperts:
    """Not an nn.Module: its arrays are cache slots, not parameters."""

    def __init__(self, layer: LayerCache, num_experts_per_tok: int):
        self._layer = layer
        self._num_experts_per_tok = num_experts_per_tok
        self._all_slots: mx.array | None = None

    def __call__(self, x: mx.array, experts: mx.array, meanwhile: mx.array) -> mx.array:
        """x [N, D], experts int [N] → [N, D]; `meanwhile` is computed while experts are read.

        Raises RunError if an expert cannot be read.
        """
        layer = self._layer
        layer.cache.stop_warming()
        if layer.holds_all:
            if self._all_slots is None:
                self._all_slots = mx.array(self._slots_of(np.arange(len(layer.held))))
            layer.cache.statistics.hits += min(len(x), len(layer.held))
            return layer.bank().experts(x, self._all_slots[experts], meanwhile)
        numbers = layer.cache.read_back(experts, meanwhile)
        layer.heat.note(numbers, len(numbers) // self._num_experts_per_tok)
        needed = np.unique(numbers).tolist()
        layer.count(needed)
        if len(needed) <= layer.capacity and len(numbers) < SORT_FROM:
            layer.hold(needed)
            output = layer.bank().experts(x, mx.array(self._slots_of(numbers)), meanwhile)
        else:
            output = self._one_by_one(x, numbers, needed)
        return layer.cache.computing(output)

    def _slots_of(self, experts: np.ndarray) -> np.ndarray:
        held = self._layer.held
        return np.array([held[expert].index for expert in experts.tolist()], np.int32)

    def _one_by_one(self, x: mx.array, numbers: np.ndarray, needed: list[int]) -> mx.array:
        """Applies each expert to all of its inputs, in the order in which experts arrive."""
        order = np.argsort(numbers, kind="stable")
        starts = np.searchsorted(numbers[order], needed)
        inputs = dict(zip(needed, np.split(order, starts[1:]), strict=True))
        outputs, sequence = [], []
        for expert, slot in self._layer.pass_through(needed):
            sequence.append(inputs[expert])
            for start, stop in row_slices(len(inputs[expert])):
                rows = mx.array(inputs[expert][start:stop])
                outputs.append(_through(x[rows], slot))
        return mx.concatenate(outputs)[mx.array(np.argsort(np.concatenate(sequence)))]


def _through(x: mx.array, slot: Slot) -> mx.array:
    output = slot.bank.experts.compute(x, mx.full(len(x), slot.index, mx.uint32), is_sorted=True)
    mx.async_eval(output)
    slot.users.append(output)
    return output
