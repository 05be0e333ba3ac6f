"""Recommends in one line what to run on this Mac: the model, its bits, and the command to type.

It uses the formulas of planner.py and placement.py. Needs no MLX.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mlx_llama4.hub.released import READY_MADE_BITS, RELEASES, is_ready_made, is_release
from mlx_llama4.planning.machine import GIB, Machine, mac
from mlx_llama4.planning.placement import StreamingPlan, tokens_per_second
from mlx_llama4.planning.planner import (
    DEFAULT_BITS,
    Choice,
    MemoryPlan,
    machines_needed,
    tokens_name,
)
from mlx_llama4.quantization import UNPACKED_BITS

# Fewer than 3 bits lose too much to be recommended; more than 4 are not needed.
RECOMMENDED_BITS = (DEFAULT_BITS, 3)

# GB of memory that Macs with Apple silicon are sold with.
MAC_SIZES = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)

# "raised": in memory if the GPU's limit is raised beyond macOS's default. "streamed": with the
# routed experts on the disk.
How = Literal["memory", "raised", "streamed", "shorter", "no"]


@dataclass(frozen=True)
class Verdict:
    """The recommendation for one model on one machine."""

    how: How
    bits: int | None  # a weight; None: as the folder stores them
    context: int  # the most tokens that fit, with keys and values in 16 bits; 0: none
    line: str  # for people, with the memory as sold: "64 GB: Scout in 3 bits, …"
    command: str  # what to type next


def sold_as(machine: Machine) -> str:
    """Memory as it is sold: 64 GiB is "64 GB"."""
    return f"{machine.memory / GIB:.3g} GB"


def candidates(plan: MemoryPlan, bits: int | None) -> list[Choice]:
    """The packings that may be recommended, the best first: the one asked for or stored, else
    RECOMMENDED_BITS.
    """
    if bits is not None or plan.subject.stored is not None:
        return [plan.chosen]
    by_bits = {choice.bits: choice for choice in plan.choices}
    return [by_bits[one] for one in RECOMMENDED_BITS]


def settled(plan: MemoryPlan, bits: int | None) -> MemoryPlan:
    """The plan with the best candidate that fits memory as the chosen one, if any fits."""
    fitting = (choice for choice in candidates(plan, bits) if choice.fit != "no")
    chosen = next(fitting, plan.chosen)
    return replace(plan, chosen=chosen, machines=machines_needed(chosen.need, plan.machine))


def best_release(plan_of: Callable[[str], MemoryPlan]) -> str:
    """Maverick if it fits in memory, else Scout, which smaller Macs can stream.

    plan_of: a release's name → its settled plan.
    """
    return "maverick" if plan_of("maverick").chosen.fit != "no" else "scout"


def judge(
    model: str, plan: MemoryPlan, bits: int | None, streaming: StreamingPlan | None
) -> Verdict:
    """The recommendation for one model.

    model: as it was typed: a release, a folder or a repository. plan: settled. bits: those asked
    for, if any. streaming: of the chosen packing.
    """
    name = RELEASES[model].short_title if is_release(model) else plan.subject.name
    chosen = plan.chosen
    how, words = _words(name, chosen, streaming)
    if how == "no":
        # A shorter context than planned may still fit.
        most = max(candidates(plan, bits), key=lambda one: one.largest[UNPACKED_BITS])
        if most.largest[UNPACKED_BITS]:
            chosen, how = most, "shorter"
            words = f"{_what(name, chosen)}, but only {_up_to(chosen)}"
    command = _command(model, how, chosen.bits)
    line = f"{sold_as(plan.machine)}: {words}"
    return Verdict(how, chosen.bits, chosen.largest[UNPACKED_BITS], line, command)


def _what(name: str, chosen: Choice) -> str:
    return name if chosen.bits is None else f"{name} in {chosen.bits} bits"


def _up_to(chosen: Choice) -> str:
    return f"up to {tokens_name(chosen.largest[UNPACKED_BITS])} tokens"


def _words(name: str, chosen: Choice, streaming: StreamingPlan | None) -> tuple[How, str]:
    what = _what(name, chosen)
    if chosen.fit != "no":
        return "memory" if chosen.fit == "yes" else "raised", f"{what}, {_up_to(chosen)}"
    if streaming is not None and streaming.default.fit != "no":
        rates = tokens_per_second(streaming.default.bytes_per_token).values()
        speed = f", {min(rates):.1f}–{max(rates):.1f} tokens/s (computed)" if rates else ""
        return "streamed", f"{what}, streamed from the SSD{speed}"
    least = chosen.need if streaming is None else streaming.least.need
    needed = next((size for size in MAC_SIZES if mac(size * GIB).usable >= least.total), None)
    wants = "more than a Mac has" if needed is None else f"{needed} GB at least"
    return "no", f"too little for {what}, which needs {wants}"


def _command(model: str, how: How, bits: int | None) -> str:
    if how == "no":
        return "mlx-llama4 demo"
    if bits is None:
        return f"mlx-llama4 chat --model {shlex.quote(model)}"
    if is_ready_made(model) and bits == READY_MADE_BITS:
        return f"mlx-llama4 chat --model {model}"
    out = shlex.quote(f"{Path(model).name}-{bits}bit")
    options = "" if bits == DEFAULT_BITS else f" --bits {bits}"
    if is_release(model):  # or 217 GB and more would have to be on the disk at once
        options += " --while-downloading"
    return f"mlx-llama4 convert {shlex.quote(model)} {out}{options}"
