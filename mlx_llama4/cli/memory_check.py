"""What cannot fit in memory is refused before it is begun: a Mac that is asked for more than it
has may stop altogether. What fits only with its experts on the disk is run so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_llama4.cli import options
from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.refusal import fitting_bits, refusal
from mlx_llama4.errors import InputError

if TYPE_CHECKING:
    from mlx_llama4.chat import ChatOptions
    from mlx_llama4.config import Config
    from mlx_llama4.convert.plan import Plan
    from mlx_llama4.planning.expert_weights import ExpertWeights
    from mlx_llama4.planning.machine import Machine
    from mlx_llama4.planning.placement import Placement
    from mlx_llama4.planning.planner import Usage
    from mlx_llama4.quantization import KVQuantization

# Streamed experts leave room for so much of a conversation, if there is.
CONVERSATION_TOKENS = 16_384


@dataclass(frozen=True)
class Task:
    """What a model folder is to do. context: tokens of prompt and answer; None: one step of a
    prefill. prompt: those that are read; None: nobody knows yet. tiles: of each picture. span:
    tokens of a step; None: not given. grows: does a conversation follow?
    """

    context: int | None
    prompt: int | None = None
    tiles: tuple[int, ...] = ()
    kv: "KVQuantization | None" = None
    span: int | None = None
    grows: bool = False


def check_memory(
    folder: Path, task: Task, experts: options.Experts = options.AUTO, *, force: bool = False
) -> "Placement | None":
    """How the model of a folder runs here, said to the user if it is not all in memory; None if it
    obviously fits.

    Raises InputError if it cannot. Reads headers.
    """
    from mlx_llama4.config import load_config
    from mlx_llama4.opening import open_folder
    from mlx_llama4.planning.expert_weights import folder_experts
    from mlx_llama4.planning.machine import this_machine
    from mlx_llama4.planning.planner import dtype_bytes, fit, need_of

    machine, config = this_machine(), load_config(folder)
    usage = _usage(config, task, dtype_bytes(config.dtype, machine), machine)
    if experts.where != "stream" and experts.memory is None:
        # Loaded, 16 bits become 32 at most. That is known at once and mostly says enough.
        most = usage.dtype_bytes // 2 * sum(file.stat().st_size for file in _weight_files(folder))
        if fit(need_of(config, most, usage).total, machine) == "yes":
            return None
    config, _ = open_folder(folder)  # what is wrong with the folder itself comes first
    weights = folder_experts(folder, config, usage.dtype_bytes)
    if experts.where == "stream" and not weights.layers:
        raise InputError(f"--experts stream: {folder} has no routed experts")
    placement = _place(config, weights, usage, machine, task, experts)
    if placement.fit == "no" and not force:
        raise InputError(refusal(folder, config, placement, machine, experts.memory))
    if placement.streaming is not None:
        terminal.note(placement.line(machine))
    if placement.fit == "raised":
        terminal.note(_above_wired_limit(placement.need.total, machine))
    return placement


def _usage(config: "Config", task: Task, dtype_bytes: int, machine: "Machine") -> "Usage":
    from mlx_llama4.memory import PREFILL_SPAN
    from mlx_llama4.planning.planner import Usage

    span = PREFILL_SPAN if task.span is None else task.span
    context = min(task.context or span, config.text.max_position_embeddings)
    return Usage(context, dtype_bytes, task.kv, task.tiles, span, machine.has_gpu)


def _place(
    config: "Config",
    weights: "ExpertWeights",
    usage: "Usage",
    machine: "Machine",
    task: Task,
    experts: options.Experts,
) -> "Placement":
    from mlx_llama4.chat.options import PREFIX_BYTES
    from mlx_llama4.memory import cache_bytes
    from mlx_llama4.planning.placement import SPANS, place

    prompt, later = task.prompt or SPANS[0], 0
    if task.grows:
        text, width = config.text, usage.dtype_bytes
        later = PREFIX_BYTES + cache_bytes(text, CONVERSATION_TOKENS, width, task.kv).total
    return place(
        config,
        weights,
        usage,
        machine,
        where=experts.where,
        memory=experts.memory,
        page_cache=experts.page_cache,
        prompt=prompt if task.span is None else None,
        later=later,
    )


def limit_to_memory(
    chat_options: "ChatOptions", folder: Path, held: int, placement: "Placement | None"
) -> None:
    """Let a conversation grow, and keep what earlier prompts left, no further than this machine's
    memory goes; `held` tokens, which a prompt cache brings, come before all of that.
    """
    from mlx_llama4.checkpoint.meta.params import MAX_TILES
    from mlx_llama4.checkpoint.safetensors import open_checkpoint
    from mlx_llama4.config import load_config
    from mlx_llama4.planning.machine import this_machine
    from mlx_llama4.planning.planner import (
        Usage,
        dtype_bytes,
        largest_context,
        loaded_bytes,
        need_of,
    )

    machine, config = this_machine(), load_config(folder)
    width = dtype_bytes(config.dtype, machine)
    if placement is None:
        span = chat_options.prefill_step
        weights = loaded_bytes(open_checkpoint(folder).tensors.values(), width)
    else:
        span, weights = placement.usage.span, placement.need.weights
    tiles = (MAX_TILES + 1,) if config.vision is not None else ()
    usage = Usage(held + span, width, chat_options.kv_quantization, tiles, span, machine.has_gpu)
    spare = max(machine.usable - need_of(config, weights, usage).total, 0)
    # Most of what is left is for the conversation itself.
    chat_options.prefix_bytes = min(chat_options.prefix_bytes, spare // 4)
    chat_options.max_context = largest_context(
        config, weights + chat_options.prefix_bytes, usage, machine.usable
    )


def _weight_files(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*.safetensors") if file.is_file()]


def _above_wired_limit(total: int, machine: "Machine") -> str:
    from mlx_llama4.planning.planner import wired_limit_command
    from mlx_llama4.units import human_bytes

    return (
        f"This takes {human_bytes(total)}, more than the {human_bytes(machine.wired)} that this "
        "Mac's GPU may hold by default, and may be slow or fail; after each start, first run: "
        f"{wired_limit_command(total, machine)}"
    )


def check_conversion(plan: "Plan", config: "Config", force: bool) -> None:
    """Raises InputError if converting cannot be done in this machine's memory; says so if what
    it makes cannot run here, or not all in memory.
    """
    from mlx_llama4.memory import PREFILL_SPAN
    from mlx_llama4.planning.expert_weights import packed_experts
    from mlx_llama4.planning.machine import this_machine
    from mlx_llama4.planning.placement import place
    from mlx_llama4.planning.planner import Usage, dtype_bytes
    from mlx_llama4.units import human_bytes

    machine = this_machine()
    memory = human_bytes(machine.usable)
    if plan.peak_bytes > machine.usable and not force:
        without = "leave out --search, or " if plan.recipe.search else ""
        raise InputError(
            f"converting takes about {human_bytes(plan.peak_bytes)} of memory, of {memory} there "
            f"are; {without}use a larger machine; --force tries anyway"
        )
    usage = Usage(PREFILL_SPAN, dtype_bytes(plan.recipe.dtype, machine), fused=machine.has_gpu)
    weights = packed_experts(config, lambda name, _: plan.packings[name], usage.dtype_bytes)
    resident = place(config, weights, usage, machine, where="resident")
    if resident.fit == "no":
        bits = fitting_bits(config, usage, machine)
        advice = f"--bits {bits} would fit" if bits else "no bits a weight would fit"
        if place(config, weights, usage, machine).fit != "no":
            advice = f"its experts will be read from the disk, which is slower; {advice}"
        terminal.note(
            f"The result takes {human_bytes(resident.need.total)} of memory to run, and this "
            f"machine has {memory} for it: {advice}"
        )
