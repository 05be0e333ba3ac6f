"""Decide, before reading any weights, whether and how a model can run here.

A task that cannot fit in memory is refused before it starts, because a Mac without enough memory
can freeze. A model that fits only with its experts on the disk is run that way. Reads no weights,
and needs no MLX.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlx_llama4.checkpoint.meta.params import MAX_TILES
from mlx_llama4.checkpoint.open import Source
from mlx_llama4.config import Config
from mlx_llama4.errors import InputError
from mlx_llama4.memory import PREFILL_SPAN, PREFIX_BYTES, cache_bytes
from mlx_llama4.planning import machine as machines
from mlx_llama4.planning.expert_weights import packed_experts, stored_experts
from mlx_llama4.planning.machine import Machine
from mlx_llama4.planning.placement import SPANS, Placement, Where, place
from mlx_llama4.planning.planner import (
    Usage,
    dtype_bytes,
    largest_context,
    need_of,
    wired_limit_command,
)
from mlx_llama4.planning.refusal import (
    fitting_bits,
    refusal,
    unconverted_refusal,
    unconverted_stream,
)
from mlx_llama4.quantization import KVQuantization, Quantization
from mlx_llama4.units import human_bytes

# Streamed experts leave room for this much conversation, if possible.
CONVERSATION_TOKENS = 16_384
# Decoding one of 24 megapixels takes less.
PHOTOGRAPH_BYTES = 192 * 2**20


@dataclass(frozen=True)
class Task:
    """What a model is to do."""

    # Tokens of prompt and answer. None: one step of a prefill.
    context: int | None = None
    # How many of these are read. None: not known yet.
    prompt: int | None = None
    # How many tiles each picture has.
    tiles: tuple[int, ...] = ()
    # How keys and values are quantized.
    kv: KVQuantization | None = None
    # Tokens of a prefill step. None: as many as suit the placement.
    span: int | None = None
    # Whether a conversation follows.
    grows: bool = False


@dataclass(frozen=True)
class Experts:
    """Where to keep routed experts."""

    where: Where = "auto"
    # Bytes of memory for streamed experts; a number requests streaming. None: what is left.
    memory: int | None = None
    # Whether the system may cache what is read of streamed experts.
    page_cache: bool = True


@dataclass(frozen=True)
class Admission:
    """How a model runs here."""

    placement: Placement
    notes: tuple[str, ...]  # what the user should know about it, one line each


@dataclass(frozen=True)
class ConversationRoom:
    """How much memory is left for a conversation."""

    # Tokens of prompt and answer.
    max_context: int
    # For keeping the beginnings of earlier prompts.
    prefix_bytes: int
    # For decoding a picture.
    picture_bytes: int


def admit(
    source: Source,
    task: Task,
    experts: Experts = Experts(),
    *,
    force: bool = False,
    width: int | None = None,
) -> Admission:
    """Decide how the model of an opened MLX folder runs on this machine.

    force: admit even a model that does not fit. width: bytes of an unpacked element; None: as in
    the folder and on the machine. Raises InputError if the model cannot run.
    """
    machine, config = machines.this_machine(), source.config
    usage = _usage(config, task, width or dtype_bytes(config.dtype, machine), machine)
    weights = stored_experts(source.matching, config, usage.dtype_bytes)
    if experts.where == "stream" and not weights.layers:
        raise InputError(
            f"--experts stream: {source.folder} has no routed experts, so there is nothing to "
            "stream; leave the option out"
        )
    if not source.is_converted:
        if experts.where == "stream" or experts.memory is not None:
            raise unconverted_stream(source.folder)
        experts = replace(experts, where="resident")
    prompt, later = task.prompt or SPANS[0], 0
    if task.grows:
        conversation = cache_bytes(config.text, CONVERSATION_TOKENS, usage.dtype_bytes, task.kv)
        later = PREFIX_BYTES + conversation.total
    placement = place(
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
    if placement.fit == "no" and not force:
        if not source.is_converted:
            raise InputError(unconverted_refusal(source.folder, placement, machine))
        raise InputError(refusal(source.folder, config, placement, machine, experts.memory))
    notes = list(source.notes)
    if not source.is_converted:
        notes.append(
            f"{source.folder} is not converted, and runs as it is; converting makes it about a "
            f"quarter as large: mlx-llama4 convert {source.folder} OUTPUT_FOLDER"
        )
    if placement.streaming is not None:
        notes.append(placement.line(machine))
    if placement.fit == "raised":
        notes.append(_above_wired_limit(placement.need.total, machine))
    return Admission(placement, tuple(notes))


def conversation_room(
    config: Config,
    placement: Placement,
    kv: KVQuantization | None = None,
    *,
    held: int = 0,
    prefix_bytes: int = PREFIX_BYTES,
    picture_bytes: int = 0,
) -> ConversationRoom:
    """How far a conversation may grow beside a placed model, and how much of earlier prompts may
    be kept, in this machine's memory.

    held: tokens of a prompt cache, for which room is set aside first. prefix_bytes: the most to
    keep of earlier prompts. picture_bytes: the most to set aside for decoding a picture.
    """
    machine, span = machines.this_machine(), placement.usage.span
    weights, width = placement.need.weights, placement.usage.dtype_bytes
    tiles = (MAX_TILES + 1,) if config.vision is not None else ()
    usage = Usage(held + span, width, kv, tiles, span, machine.has_gpu)
    spare = max(machine.usable - need_of(config, weights, usage).total, 0)
    # Most of what is left is for the conversation itself, but a photograph must fit.
    photograph = min(PHOTOGRAPH_BYTES, spare // 3)
    picture_bytes = min(picture_bytes, max(photograph, spare // 4)) if tiles else 0
    prefix_bytes = min(prefix_bytes, (spare - picture_bytes) // 4)
    aside = prefix_bytes + picture_bytes
    context = largest_context(config, weights + aside, usage, machine.usable)
    return ConversationRoom(context, prefix_bytes, picture_bytes)


def admit_conversion(
    config: Config,
    packings: Mapping[str, Quantization | None],
    dtype: str,
    *,
    peak_bytes: int,
    searches: bool,
    force: bool,
) -> tuple[str, ...]:
    """Tell the user, before a conversion starts, if its result cannot run here or not all in
    memory.

    packings: how each tensor of the model will be packed. dtype: of unpacked tensors. peak_bytes:
    memory that the conversion takes; more if it searches for scales. Raises InputError if there is
    less, unless `force` is set.
    """
    machine = machines.this_machine()
    memory = human_bytes(machine.usable)
    if peak_bytes > machine.usable and not force:
        without = "leave out --search, or " if searches else ""
        raise InputError(
            f"converting takes about {human_bytes(peak_bytes)} of memory, of {memory} "
            f"available; {without}use a larger machine; --force tries anyway"
        )
    usage = Usage(PREFILL_SPAN, dtype_bytes(dtype, machine), fused=machine.has_gpu)
    weights = packed_experts(config, lambda name, _: packings[name], usage.dtype_bytes)
    resident = place(config, weights, usage, machine, where="resident")
    if resident.fit != "no":
        return ()
    bits = fitting_bits(config, usage, machine)
    advice = f"--bits {bits} would fit" if bits else "no bits a weight would fit"
    if place(config, weights, usage, machine).fit != "no":
        advice = f"its experts will be read from the disk, which is slower; {advice}"
    return (
        f"The result takes {human_bytes(resident.need.total)} of memory to run, and this "
        f"machine has {memory} for it: {advice}",
    )


def _usage(config: Config, task: Task, width: int, machine: Machine) -> Usage:
    span = PREFILL_SPAN if task.span is None else task.span
    context = min(task.context or span, config.text.max_position_embeddings)
    return Usage(context, width, task.kv, task.tiles, span, machine.has_gpu)


def _above_wired_limit(total: int, machine: Machine) -> str:
    held = human_bytes(machine.wired or 0)
    return (
        f"This takes {human_bytes(total)}, more than the {held} that this "
        "Mac's GPU may hold by default, and may be slow or fail; after each start, first run: "
        f"{wired_limit_command(total, machine)}"
    )
