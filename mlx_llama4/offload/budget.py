"""How many experts a budget of bytes keeps in memory. Needs no MLX."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from mlx_llama4.errors import InputError
from mlx_llama4.units import human_bytes

# MLX may keep freed buffers for reuse: at most 1/16 of the budget, and at most 256 MiB.
BUFFER_SHARE, MOST_BUFFERS = 16, 256 * 2**20


@dataclass(frozen=True)
class ExpertStreaming:
    """How routed experts are read from the disk as tokens need them."""

    memory: int  # bytes for experts that stay, experts that pass through, and MLX's freed buffers
    page_cache: bool = True  # False: ask the system not to cache what is read


@dataclass(frozen=True)
class LayerExperts:
    """What the budget needs to know of one MoE layer."""

    count: int
    expert_bytes: int  # of one expert, in memory
    packing: Hashable  # equal for experts whose arrays have the same shapes and dtypes


@dataclass(frozen=True)
class SlotPlan:
    """How a budget is divided."""

    slots: tuple[int, ...]  # of each MoE layer, for experts that stay
    lanes: int  # of each packing, for experts that pass through
    buffers: int  # bytes that MLX may keep for reuse


def plan_slots(layers: Sequence[LayerExperts], memory: int) -> SlotPlan:
    """Spends `memory` bytes in this order: a lane; a slot for each layer; a second lane, to read
    into while the first is in use; more slots, evenly over the layers.

    Raises InputError if `memory` does not pay for one lane.
    """
    least = least_memory(layers)
    if memory < least:
        raise InputError(
            f"--expert-memory {human_bytes(memory)}: one expert alone takes {human_bytes(least)}"
        )
    buffers = min(memory // BUFFER_SHARE, MOST_BUFFERS, memory - least)
    room = memory - buffers - least
    slots = [0] * len(layers)
    room = _one_more_each(layers, slots, room)
    lanes = 2 if min(slots) > 0 and room >= least else 1
    room -= (lanes - 1) * least
    while (left := _one_more_each(layers, slots, room)) < room:
        room = left
    return SlotPlan(tuple(slots), lanes, buffers)


def least_memory(layers: Sequence[LayerExperts]) -> int:
    """Bytes of one lane for each packing: the least with which streaming works."""
    return sum({layer.packing: layer.expert_bytes for layer in layers}.values())


def _one_more_each(layers: Sequence[LayerExperts], slots: list[int], room: int) -> int:
    """Adds a slot to each layer that has an expert left for it, while `room` lasts; returns the
    room left.
    """
    for index, layer in enumerate(layers):
        if slots[index] < layer.count and layer.expert_bytes <= room:
            slots[index] += 1
            room -= layer.expert_bytes
    return room
