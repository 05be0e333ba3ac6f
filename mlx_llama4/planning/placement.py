"""Where a model's routed experts are kept: all in memory, or on the disk, read as tokens need them.

By the formulas of planner.py and offload/budget.py. Needs no MLX.
"""

from dataclasses import dataclass, replace
from typing import Literal

from mlx_llama4.config import Config
from mlx_llama4.offload.budget import ExpertStreaming, plan_slots
from mlx_llama4.planning.expert_weights import ExpertWeights
from mlx_llama4.planning.machine import Machine
from mlx_llama4.planning.planner import Fit, Need, Usage, fit, need_of, wired_limit_command
from mlx_llama4.units import human_bytes

Where = Literal["auto", "resident", "stream"]

# Where no limit of a GPU leaves something for the process, other programs and the page cache.
SPARE_SHARE = 8
# Of a prefill whose experts are read once a step. Powers of two, so that after an odd start steps
# meet the borders of chunks.
SPANS = (32_768, 16_384, 8192, 4096)
# GB/s that the SSDs of Macs read: of the smallest, of most, of the fastest.
DISKS = (3.0, 5.5, 7.4)
# Of what is left for experts, what a step or a conversation may take: one part in so many.
STEP_SHARE, LATER_SHARE = 4, 4


@dataclass(frozen=True)
class Placement:
    """streaming: None for all experts in memory. usage: with the span of a prefill step. slots: of
    each MoE layer, for experts that stay in memory. resident_fit: of the model with all of them
    there.
    """

    experts: ExpertWeights
    streaming: ExpertStreaming | None
    slots: tuple[int, ...]
    usage: Usage
    need: Need
    fit: Fit
    resident_fit: Fit

    @property
    def kept(self) -> float:
        """Share of the experts that are in memory."""
        return self.experts.kept(self.slots)

    @property
    def bytes_per_token(self) -> float:
        """Expected to be read, if all experts are equally likely."""
        return self.experts.read_bytes(self.slots)

    def line(self, machine: Machine) -> str:
        """What is done with the experts, for people; of a streamed model."""
        size = human_bytes(self.experts.all)
        kept = human_bytes(min(self.streaming.memory, self.experts.all))
        reading = f"from the disk with {kept} kept in memory ({self.kept:.0%})"
        rest = self.need.total - self.streaming.memory
        if self.resident_fit == "yes":
            return f"Experts: streaming {size} {reading}"
        if self.resident_fit == "no":
            left = human_bytes(max(machine.usable - rest, 0))
            return f"Experts: {size} do not fit in the {left} left; streaming them {reading}"
        left = human_bytes(max(machine.wired - rest, 0))
        return (
            f"Experts: {size} do not fit in the {left} that this Mac's GPU has left by default; "
            f"streaming them {reading}; to have all in memory, after each start first run: "
            f"{wired_limit_command(rest + self.experts.all, machine)}"
        )


def place(
    config: Config,
    experts: ExpertWeights,
    usage: Usage,
    machine: Machine,
    *,
    where: Where = "auto",
    memory: int | None = None,
    page_cache: bool = True,
    prompt: int | None = None,
    later: int = 0,
) -> Placement:
    """Decide; the result may still say that it does not fit.

    memory: for experts, which asks for streaming; by default what the rest leaves. prompt: the most
    tokens that are read at once, for which a streamed model's step may be longer than `usage` says;
    None leaves it. later: bytes that a conversation is to have beyond `usage`, as far as it goes.

    "auto" keeps all in memory where that fits as the machine is set, and streams where only that
    does. Raises InputError for a memory that does not hold one expert.
    """
    resident = _resident(config, experts, usage, machine)
    streams = where == "stream" or (where == "auto" and memory is not None)
    if where == "resident" or not experts.layers or (not streams and resident.fit == "yes"):
        return resident
    usage = replace(usage, streamed=True)
    if prompt is not None and (memory is None or memory < experts.most_memory):
        usage = _with_longer_steps(config, experts, usage, machine, prompt)
    if memory is None:
        memory = _default_memory(config, experts, usage, machine, later)
    streamed = _streamed(config, experts, usage, machine, ExpertStreaming(memory, page_cache))
    if not streams and resident.fit == "raised" and streamed.fit != "yes":
        return resident
    return replace(streamed, resident_fit=resident.fit)


def tokens_per_second(bytes_per_token: float) -> dict[float, float]:
    """GB/s of a disk → tokens/s at most, while reading is all there is to wait for."""
    return {disk: disk * 1e9 / bytes_per_token for disk in DISKS if bytes_per_token}


@dataclass(frozen=True)
class StreamingPlan:
    """least: with an expert at a time in memory. default: with what the rest leaves."""

    least: Placement
    default: Placement


def plan_streaming(
    config: Config, experts: ExpertWeights, usage: Usage, machine: Machine
) -> StreamingPlan | None:
    """None for a model without routed experts."""
    if not experts.layers:
        return None
    usage, least = replace(usage, streamed=True), ExpertStreaming(experts.least_memory)
    default = place(config, experts, usage, machine, where="stream", prompt=usage.context)
    return StreamingPlan(_streamed(config, experts, usage, machine, least), default)


def room(machine: Machine) -> int:
    """Bytes that a streamed model takes at most if it is not told otherwise."""
    if machine.wired is not None:
        return min(machine.wired, machine.usable)
    return machine.usable - machine.usable // SPARE_SHARE


def _resident(config: Config, experts: ExpertWeights, usage: Usage, machine: Machine) -> Placement:
    need = need_of(config, experts.others + experts.all, usage)
    fits = fit(need.total, machine)
    slots = tuple(layer.count for layer in experts.layers)
    return Placement(experts, None, slots, usage, need, fits, fits)


def _streamed(
    config: Config,
    experts: ExpertWeights,
    usage: Usage,
    machine: Machine,
    streaming: ExpertStreaming,
) -> Placement:
    slots = plan_slots(experts.layers, streaming.memory).slots
    need = need_of(config, experts.others + streaming.memory, usage)
    fits = fit(need.total, machine)
    return Placement(experts, streaming, slots, usage, need, fits, fits)


def _default_memory(
    config: Config, experts: ExpertWeights, usage: Usage, machine: Machine, later: int
) -> int:
    """What is left of the memory, at most what all experts take."""
    rest = need_of(config, experts.others, usage).total
    least, left = experts.least_memory, room(machine) - rest
    if left < least:  # only what the system would rather keep
        return min(max(machine.usable - rest, least), experts.most_memory)
    left -= min(later, (left - least) // LATER_SHARE)
    return min(left, experts.most_memory)


def _with_longer_steps(
    config: Config, experts: ExpertWeights, usage: Usage, machine: Machine, prompt: int
) -> Usage:
    """With the longest steps of use for so many tokens that leave experts most of the memory."""
    start = need_of(config, experts.others, usage).total
    left = room(machine) - start - experts.least_memory
    longest = min(prompt, config.text.max_position_embeddings)
    if left >= experts.most_memory:  # nothing will have to be read twice
        return usage
    for span in SPANS:
        context = max(usage.context, min(span, longest))
        longer = replace(usage, span=span, context=context)
        taken = need_of(config, experts.others, longer).total - start
        if usage.span < span < 2 * longest and taken <= left // STEP_SHARE:
            return longer
    return usage
