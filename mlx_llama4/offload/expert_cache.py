"""The experts that are in memory, and fetching the others."""

import threading
import time
import weakref
from collections import deque
from collections.abc import Collection, Iterator, Sequence

import mlx.core as mx
import numpy as np

from mlx_llama4.model.streaming import StreamingStatistics
from mlx_llama4.offload.budget import ExpertStreaming, plan_slots
from mlx_llama4.offload.expert_store import ExpertStore, ExpertTensor, Reading, layer_experts
from mlx_llama4.offload.heat import Heat
from mlx_llama4.offload.slot_bank import Slot, SlotBank
from mlx_llama4.offload.warming import Warming

_kept_buffers = {"models": 0, "bytes": 0, "otherwise": 0}
# A model that is dropped while this is held is finalized in the same thread.
_keeping = threading.RLock()


def _keep_buffers(nbytes: int, models: int = 1) -> None:
    """Adds to MLX's limit of freed buffers, which is global: the sum over all loaded models. Once
    the last model is gone, the limit is what it was before the first.
    """
    kept = _kept_buffers
    with _keeping:
        if kept["models"] == 0:
            kept["otherwise"] = mx.set_cache_limit(0)
        kept["models"] += models
        kept["bytes"] += nbytes
        mx.set_cache_limit(kept["bytes"] if kept["models"] else kept["otherwise"])


class ExpertCache:
    """The experts of a whole model: their store, each layer's slots, and the outputs that MLX may
    not have evaluated yet.
    """

    def __init__(self, layers: dict[int, tuple[ExpertTensor, ...]], streaming: ExpertStreaming):
        self.store = ExpertStore(layers, streaming.page_cache)
        self.statistics = StreamingStatistics()
        needs = [layer_experts(tensors) for tensors in layers.values()]
        plan = plan_slots(needs, streaming.memory)
        packings = {
            need.packing: tensors for need, tensors in zip(needs, layers.values(), strict=True)
        }
        lanes = {
            packing: SlotBank(tensors, plan.lanes).slots for packing, tensors in packings.items()
        }
        self.layers = {
            layer: LayerCache(self, layer, need.count, slots, lanes[need.packing])
            for layer, need, slots in zip(layers, needs, plan.slots, strict=True)
        }
        self._unfinished: list[mx.array] = []
        self._warming: Warming | None = None
        _keep_buffers(plan.buffers)
        weakref.finalize(self, _keep_buffers, -plan.buffers, models=-1)

    def warm(self) -> None:
        """Fills slots in the background, until the first step is computed."""
        self.stop_warming()
        self._warming = Warming(self.layers.values())

    def stop_warming(self) -> None:
        if self._warming is not None:
            self._warming.stop()
            self._warming = None

    @property
    def heats(self) -> dict[int, Heat]:
        """Layer → the heat of its experts."""
        return {index: layer.heat for index, layer in self.layers.items()}

    def read_back(self, chosen: mx.array, meanwhile: mx.array) -> np.ndarray:
        """The router's choice as numbers on the host; `meanwhile` is computed after it.

        By then all earlier outputs of slots are evaluated, so the slots may be overwritten.
        """
        started_at = time.perf_counter()
        mx.async_eval(chosen, *self._unfinished)
        mx.async_eval(meanwhile)
        numbers = np.array(chosen)
        self._unfinished.clear()
        self.statistics.read_backs += 1
        self.statistics.read_back_seconds += time.perf_counter() - started_at
        return numbers

    def computing(self, output: mx.array) -> mx.array:
        """Returns `output`, and keeps the slots it reads from being overwritten until it is
        evaluated.
        """
        self._unfinished.append(output)
        return output

    def finish(self, reading: Reading) -> None:
        """Waits for the reading, and counts its bytes and the time spent waiting."""
        started_at = time.perf_counter()
        reading.finish()
        self.statistics.waiting_seconds += time.perf_counter() - started_at
        self.statistics.bytes_read += reading.nbytes


class LayerCache:
    """The experts of one MoE layer that are in memory, and how the others get there."""

    def __init__(
        self, cache: ExpertCache, layer: int, num_experts: int, slots: int, lanes: list[Slot]
    ):
        self.cache = cache
        self.heat = Heat(num_experts)
        # Expert → its slot. The only record of what a slot holds: an expert enters it once all of
        # it is read, so an interrupted read leaves a free slot, never half an expert.
        self.held: dict[int, Slot] = {}
        self.capacity = slots
        self._layer = layer
        self._lanes = lanes
        self._bank: SlotBank | None = None

    def bank(self) -> SlotBank:
        """The layer's slots, allocated on the first call: an unused model takes no memory."""
        if self._bank is None:
            self._bank = SlotBank(self.cache.store.layers[self._layer], self.capacity)
        return self._bank

    @property
    def holds_all(self) -> bool:
        return len(self.held) == len(self.heat.values)

    def count(self, needed: Collection[int]) -> None:
        """Adds to the statistics which of the needed experts are in memory."""
        hits = sum(expert in self.held for expert in needed)
        self.cache.statistics.hits += hits
        self.cache.statistics.misses += len(needed) - hits

    def warm(self, rank: int) -> None:
        """Reads the expert of this rank, 0 the hottest, into a slot, if it is not held yet and a
        slot is free.
        """
        experts = self.heat.coldest_first(range(len(self.heat.values)))
        expert, free = experts[-1 - rank], self._free()
        if expert not in self.held and free:
            reading = self._start(expert, free[0])
            reading.finish()  # not counted as waiting: nothing is computed meanwhile
            self.cache.statistics.bytes_read += reading.nbytes
            self.held[expert] = free[0]

    def hold(self, needed: Collection[int]) -> None:
        """Gets all of these experts into slots; there must be at least as many slots."""
        missing = [expert for expert in needed if expert not in self.held]
        slots = self._make_room(len(missing), needed)
        under_way = []
        try:
            for expert, slot in zip(missing, slots, strict=True):
                under_way.append((expert, slot, self._start(expert, slot)))
            for expert, slot, reading in under_way:
                self.cache.finish(reading)
                self.held[expert] = slot
        finally:
            for _, _, reading in under_way:
                reading.abandon()

    def pass_through(self, needed: Sequence[int]) -> Iterator[tuple[int, Slot]]:
        """Yields each of these experts with the slot or lane it is in, and reads others while the
        caller computes. The caller appends what it computes to `slot.users`. Afterwards the hottest
        experts are held.
        """
        ranked = self.heat.coldest_first([*{*needed, *self.held}])
        staying = set(ranked[max(len(ranked) - self.capacity, 0) :])
        ready = {expert: self.held[expert] for expert in needed if expert in self.held}
        missing = [expert for expert in needed if expert not in self.held]
        passing = [expert for expert in missing if expert not in staying]
        jobs = [(expert, self._lanes[i % len(self._lanes)]) for i, expert in enumerate(passing)]
        kept = [expert for expert in missing if expert in staying]
        jobs += zip(kept, self._slots_besides(staying), strict=False)
        yield from self._read_ahead(jobs, ready)
        for slot in (*self._lanes, *self.bank().slots):
            slot.users.clear()  # part of the caller's output, which `computing` keeps track of

    def _read_ahead(
        self, jobs: Sequence[tuple[int, Slot]], ready: dict[int, Slot]
    ) -> Iterator[tuple[int, Slot]]:
        """jobs: experts to read, each with where to. ready: experts that are in memory, yielded
        while reads are under way; emptied.
        """
        under_way: deque[tuple[int, Slot, Reading]] = deque()
        try:
            for expert, slot in jobs:
                if len(under_way) == len(self._lanes):
                    yield from _while_reading(under_way[0][2], ready)
                    yield self._finish(*under_way.popleft())
                for former in [former for former, held in ready.items() if held is slot]:
                    yield former, ready.pop(former)  # or it would be read again
                under_way.append((expert, slot, self._start(expert, slot)))
            while under_way:
                yield from _while_reading(under_way[0][2], ready)
                yield self._finish(*under_way.popleft())
            yield from ready.items()
        finally:
            for _, _, reading in under_way:
                reading.abandon()

    def _start(self, expert: int, slot: Slot) -> Reading:
        for former, held in list(self.held.items()):
            if held is slot:
                del self.held[former]
        slot.vacate()
        slot.reading = reading = Reading()
        self.cache.store.read(self._layer, expert, slot.places, reading)
        return reading

    def _finish(self, expert: int, slot: Slot, reading: Reading) -> tuple[int, Slot]:
        self.cache.finish(reading)
        if slot.bank is self._bank:
            self.held[expert] = slot
        return expert, slot

    def _make_room(self, count: int, needed: Collection[int]) -> list[Slot]:
        """Slots for `count` experts: free ones, then those of the coldest that are not needed."""
        others = [expert for expert in self.held if expert not in needed]
        going = [self.held[expert] for expert in self.heat.coldest_first(others)]
        return [*self._free(), *going][:count]

    def _slots_besides(self, staying: Collection[int]) -> list[Slot]:
        """Free slots, then those of experts that are not to stay."""
        going = [slot for expert, slot in self.held.items() if expert not in staying]
        return [*self._free(), *going]

    def _free(self) -> list[Slot]:
        taken = {slot.index for slot in self.held.values()}
        return [slot for slot in self.bank().slots if slot.index not in taken]


def _while_reading(reading: Reading, ready: dict[int, Slot]) -> Iterator[tuple[int, Slot]]:
    """Yields experts of `ready`, and computes with each, until the read is done."""
    while ready and not reading.is_done:
        expert, slot = ready.popitem()
        yield expert, slot
        mx.eval(slot.users)  # or all of `ready` would be queued before the expert being read
