"""Explain in one line why a model does not fit, and what would help."""

from dataclasses import replace
from pathlib import Path

from mlx_llama4.config import Config
from mlx_llama4.errors import InputError
from mlx_llama4.planning.expert_weights import experts_in_bits
from mlx_llama4.planning.machine import Machine
from mlx_llama4.planning.placement import Placement, Where, place
from mlx_llama4.planning.planner import (
    PLANNED_BITS,
    Usage,
    kv_choices,
    largest_context,
    need_of,
)
from mlx_llama4.quantization import UNPACKED_BITS
from mlx_llama4.units import human_bytes


def refusal(
    folder: Path, config: Config, placement: Placement, machine: Machine, memory: int | None
) -> str:
    """Say how much memory the model takes, how much there is, and which options would help.

    memory: the memory requested for streamed experts, or None.
    """
    need, usage = placement.need, placement.usage
    if placement.streaming is None:
        how, weights = "", f"weights {human_bytes(need.weights)}"
    else:
        taken = need.weights - placement.experts.others
        how = " with its experts on the disk"
        weights = f"experts {human_bytes(taken)}, other weights {human_bytes(need.weights - taken)}"
    advice = "; ".join(_advice(config, placement, machine, memory))
    return (
        f"{folder} takes {human_bytes(need.total)} of memory for {usage.context:,} tokens{how} "
        f"({weights}, keys and values {human_bytes(need.cache.total)}, in flight "
        f"{human_bytes(need.in_flight)}), of {human_bytes(machine.usable)} available; "
        f"{advice or 'no bits a weight make it fit'}; --force tries anyway"
    )


def unconverted_refusal(folder: Path, placement: Placement, machine: Machine) -> str:
    """The line for a folder that is too large to run without being converted."""
    return (
        f"{folder} is not converted, and takes {human_bytes(placement.need.total)} of memory as it "
        f"is, of {human_bytes(machine.usable)} available; converting makes it about a quarter as "
        f"large: mlx-llama4 convert {folder} OUTPUT_FOLDER; --force tries anyway"
    )


def unconverted_stream(folder: Path) -> InputError:
    return InputError(
        f"{folder} is not converted, and experts are streamed from converted folders only; run: "
        f"mlx-llama4 convert {folder} OUTPUT_FOLDER"
    )


def _advice(
    config: Config, placement: Placement, machine: Machine, memory: int | None
) -> list[str]:
    usage, weights, streams = placement.usage, placement.need.weights, bool(placement.streaming)
    advice = []
    if not streams and placement.experts.layers:
        streamed = place(config, placement.experts, usage, machine, where="stream")
        if streamed.fit != "no":
            advice.append("--experts stream would do")
    if memory is not None:
        left = machine.usable - need_of(config, placement.experts.others, usage).total
        if left >= placement.experts.least_memory:
            advice.append(f"--expert-memory takes at most {human_bytes(left)} here")
    if fitting := largest_context(config, weights, usage, machine.usable):
        advice.append(f"{fitting:,} tokens would fit")
    group_size, kv_bits = (usage.kv.group_size, usage.kv.bits) if usage.kv else (64, UNPACKED_BITS)
    for bits, kv in kv_choices(config, group_size).items():
        packed = need_of(config, weights, replace(usage, kv=kv))
        if bits < kv_bits and packed.total <= machine.usable:
            advice.append(f"--kv-bits {bits} would do")
            break
    if memory is None and (fewer := fitting_bits(config, usage, machine, streams)):
        advice.append(f"converted with --bits {fewer} it would fit")
    return advice


def fitting_bits(
    config: Config, usage: Usage, machine: Machine, streams: bool = False
) -> int | None:
    """The most bits a weight with which `usage` fits."""
    where: Where = "stream" if streams else "resident"
    for bits in reversed(PLANNED_BITS):
        experts = experts_in_bits(config, bits, usage.dtype_bytes)
        if place(config, experts, usage, machine, where=where).fit != "no":
            return bits
    return None
