"""How many experts a number of bytes keeps in memory. Needs no MLX."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from mlx_llama4.errors import InputError
from mlx_llama4.units import human_bytes

# MLX keeps freed buffers for reuse, up to this share of the budget and no more than so many bytes.
BUFFER_SHARE, MOST_BUFFERS = 16, 256 * 2**20


@dataclass(frozen=True)
class ExpertStreaming:
    """How routed experts are read from the disk as tokens need them.

    memory: bytes for experts that are kept, for those that pass through, and for the buffers that
    MLX keeps. page_cache: may the system keep what was read.
    """

    memory: int
    page_cache: bool = True


@dataclass(frozen=True)
class LayerExperts:
    """Of one MoE layer. expert_bytes: of one expert in memory. packing: experts whose arrays have
    the same shapes and types have the same.
    """

    count: int
    expert_bytes: int
    packing: Hashable


@dataclass(frozen=True)
class SlotPlan:
    """slots: of each MoE layer, for experts that stay. lanes: for experts that pass through, as
    many for each packing. buffers: bytes that MLX may keep for reuse.
    """

    slots: tuple[int, ...]
    lanes: int
    buffers: int


def plan_slots(layers: Sequence[LayerExperts], memory: int) -> SlotPlan:
    """The slots that `memory` bytes buy: a lane, then a slot for each layer, then a second lane to
    read into while the first is computed with, then more for all layers alike.

    Raises InputError if they do not even buy a lane.
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
    """Bytes of a lane for each packing."""
    return sum({layer.packing: layer.expert_bytes for layer in layers}.values())


def _one_more_each(layers: Sequence[LayerExperts], slots: list[int], room: int) -> int:
    """Add a slot to each layer that has an expert left for it, as far as `room` goes; what is left
    of that.
    """
    for index, layer in enumerate(layers):
        if slots[index] < layer.count and layer.expert_bytes <= room:
            slots[index] += 1
            room -= layer.expert_bytes
    return room
