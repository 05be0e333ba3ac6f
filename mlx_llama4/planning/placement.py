"""Decides where routed experts are: all in memory, or on the disk, read as tokens need them.

It uses the formulas of planner.py and budget.py. Needs no MLX.
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

# Without a GPU's limit, one part in SPARE_SHARE stays free for other programs and the page cache.
SPARE_SHARE = 8
# Tokens of a prefill step when each step reads the experts once. Powers of two, so that steps meet
# chunk borders even after an odd start.
SPANS = (32_768, 16_384, 8192, 4096)
# GB/s that Macs' SSDs read: the smallest ones, most, the fastest.
DISKS = (3.0, 5.5, 7.4)
# One part in so many of the memory left for experts may go to a longer step, or a longer
# conversation.
STEP_SHARE, LATER_SHARE = 4, 4


@dataclass(frozen=True)
class Placement:
    """Where a model's experts are, and what it then needs."""

    experts: ExpertWeights
    streaming: ExpertStreaming | None  # None: all experts are in memory
    slots: tuple[int, ...]  # of each MoE layer, for experts that stay in memory
    usage: Usage  # with the span chosen for a prefill step
    need: Need
    fit: Fit
    resident_fit: Fit  # with all experts in memory

    @property
    def kept(self) -> float:
        """The share of experts that stay in memory."""
        return self.experts.kept(self.slots)

    @property
    def bytes_per_token(self) -> float:
        """Bytes read for a token on average, if all experts are equally likely."""
        return self.experts.read_bytes(self.slots)

    def line(self, machine: Machine) -> str:
        """What is done with the experts of a streamed model, for people."""
        if self.streaming is None:
            raise ValueError("all experts are in memory")
        size = human_bytes(self.experts.all)
        kept = human_bytes(min(self.streaming.memory, self.experts.all))
        reading = f"from the disk with {kept} kept in memory ({self.kept:.0%})"
        rest = self.need.total - self.streaming.memory
        if self.resident_fit == "yes":
            return f"Experts: streaming {size} {reading}"
        if self.resident_fit == "no" or machine.wired is None:
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
    """Decides; the result may still not fit.

    "auto" keeps all experts in memory if they fit as the machine is set now, and streams them if
    only that fits.

    memory: bytes for streamed experts. Giving it asks for streaming; the default is what the rest
        of the model leaves.
    prompt: the most tokens read at once; a streamed model's step may become longer for them than
        `usage` says. None leaves the step as it is.
    later: bytes to leave, if possible, for a conversation that grows beyond `usage`.

    Raises InputError if `memory` does not hold one expert.
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
    """GB/s of a disk → the most tokens/s, if reading is all there is to wait for."""
    return {disk: disk * 1e9 / bytes_per_token for disk in DISKS if bytes_per_token}


@dataclass(frozen=True)
class StreamingPlan:
    """Two ways to stream a model."""

    least: Placement  # with one expert at a time in memory
    default: Placement  # with all the memory that the rest of the model leaves


def plan_streaming(
    config: Config, experts: ExpertWeights, usage: Usage, machine: Machine
) -> StreamingPlan | None:
    """Both ways to stream a model; None for a model without routed experts."""
    if not experts.layers:
        return None
    usage, least = replace(usage, streamed=True), ExpertStreaming(experts.least_memory)
    default = place(config, experts, usage, machine, where="stream", prompt=usage.context)
    return StreamingPlan(_streamed(config, experts, usage, machine, least), default)


def room(machine: Machine) -> int:
    """The most bytes that a streamed model takes, unless it is told otherwise."""
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
    """The memory left for experts, but no more than all of them take."""
    rest = need_of(config, experts.others, usage).total
    least, left = experts.least_memory, room(machine) - rest
    if left < least:  # take some of what the system should keep
        return min(max(machine.usable - rest, least), experts.most_memory)
    left -= min(later, (left - least) // LATER_SHARE)
    return min(left, experts.most_memory)


def _with_longer_steps(
    config: Config, experts: ExpertWeights, usage: Usage, machine: Machine, prompt: int
) -> Usage:
    """The usage with the longest steps that help `prompt` tokens and leave experts most of the
    memory.
    """
    start = need_of(config, experts.others, usage).total
    left = room(machine) - start - experts.least_memory
    longest = min(prompt, config.text.max_position_embeddings)
    if left >= experts.most_memory:  # nothing is read twice anyway
        return usage
    for span in SPANS:
        context = max(usage.context, min(span, longest))
        longer = replace(usage, span=span, context=context)
        taken = need_of(config, experts.others, longer).total - start
        if usage.span < span < 2 * longest and taken <= left // STEP_SHARE:
            return longer
    return usage
