"""What cannot fit in memory is refused before it is begun: a Mac that is asked for more than it
has may stop altogether.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_llama4.cli import terminal
from mlx_llama4.errors import InputError

if TYPE_CHECKING:
    from mlx_llama4.chat import ChatOptions
    from mlx_llama4.config import Config
    from mlx_llama4.convert.plan import Plan
    from mlx_llama4.machine import Machine
    from mlx_llama4.planner import Usage
    from mlx_llama4.quantization import KVQuantization


def check_memory(
    folder: Path,
    context: int | None = None,
    *,
    tiles: tuple[int, ...] = (),
    kv: "KVQuantization | None" = None,
    span: int | None = None,
    force: bool = False,
) -> None:
    """Raises InputError if a model folder cannot run here at a context of so many tokens.

    context: prompt and answer; without it, one step of a prefill. tiles: of each picture. span:
    tokens of a step. Reads headers.
    """
    from mlx_llama4.config import load_config
    from mlx_llama4.convert.checkpoint import open_checkpoint
    from mlx_llama4.load import open_folder
    from mlx_llama4.machine import this_machine
    from mlx_llama4.memory import PREFILL_SPAN
    from mlx_llama4.planner import Usage, dtype_bytes, fit, loaded_bytes, need_of

    machine, config = this_machine(), load_config(folder)
    width = dtype_bytes(config.dtype, machine)
    span = PREFILL_SPAN if span is None else span
    limit = config.text.max_position_embeddings
    usage = Usage(min(context or span, limit), width, kv, tiles, span, machine.has_gpu)
    # Loaded, 16 bits become 32 at most. That is known at once and mostly says enough.
    most = width // 2 * sum(file.stat().st_size for file in _weight_files(folder))
    if fit(need_of(config, most, usage).total, machine) == "yes":
        return
    weights = loaded_bytes(open_checkpoint(folder).tensors.values(), width)
    total = need_of(config, weights, usage).total
    verdict = fit(total, machine)
    if verdict == "no" and not force:
        open_folder(folder)  # what is wrong with the folder itself comes first
        raise InputError(_refusal(folder, config, weights, usage, machine))
    if verdict == "raised":
        terminal.note(_above_wired_limit(total, machine))


def limit_to_memory(options: "ChatOptions", folder: Path, held: int) -> None:
    """Let a conversation grow, and keep what earlier prompts left, no further than this machine's
    memory goes; `held` tokens, which a prompt cache brings, come before all of that.
    """
    from mlx_llama4.config import load_config
    from mlx_llama4.convert.checkpoint import open_checkpoint
    from mlx_llama4.convert.meta_params import MAX_TILES
    from mlx_llama4.machine import this_machine
    from mlx_llama4.planner import Usage, dtype_bytes, largest_context, loaded_bytes, need_of

    machine, config = this_machine(), load_config(folder)
    width, span = dtype_bytes(config.dtype, machine), options.prefill_step
    weights = loaded_bytes(open_checkpoint(folder).tensors.values(), width)
    tiles = (MAX_TILES + 1,) if config.vision is not None else ()
    usage = Usage(held + span, width, options.kv_quantization, tiles, span, machine.has_gpu)
    spare = max(machine.usable - need_of(config, weights, usage).total, 0)
    # Most of what is left is for the conversation itself.
    options.prefix_bytes = min(options.prefix_bytes, spare // 4)
    options.max_context = largest_context(
        config, weights + options.prefix_bytes, usage, machine.usable
    )


def _weight_files(folder: Path) -> list[Path]:
    return [file for file in folder.glob("*.safetensors") if file.is_file()]


def _above_wired_limit(total: int, machine: "Machine") -> str:
    from mlx_llama4.memory import human_bytes
    from mlx_llama4.planner import wired_limit_command

    return (
        f"This takes {human_bytes(total)}, more than the {human_bytes(machine.wired)} that this "
        "Mac's GPU may hold by default, and may be slow or fail; after each start, first run: "
        f"{wired_limit_command(total, machine)}"
    )


def _refusal(
    folder: Path, config: "Config", weights: int, usage: "Usage", machine: "Machine"
) -> str:
    """One line: what it takes, what there is, and each option that would help."""
    from mlx_llama4.memory import human_bytes
    from mlx_llama4.planner import UNPACKED_BITS, kv_choices, largest_context, need_of

    need = need_of(config, weights, usage)
    options = []
    if fitting := largest_context(config, weights, usage, machine.usable):
        options.append(f"{fitting:,} tokens would fit")
    group_size, kv_bits = (usage.kv.group_size, usage.kv.bits) if usage.kv else (64, UNPACKED_BITS)
    for bits, kv in kv_choices(config, group_size).items():
        packed = need_of(config, weights, replace(usage, kv=kv))
        if bits < kv_bits and packed.total <= machine.usable:
            options.append(f"--kv-bits {bits} would do")
            break
    if bits := _fitting_bits(config, usage, machine):
        options.append(f"converted with --bits {bits} it would fit")
    advice = "; ".join(options) or "no bits a weight make it fit"
    return (
        f"{folder} takes {human_bytes(need.total)} of memory for {usage.context:,} tokens (weights "
        f"{human_bytes(weights)}, keys and values {human_bytes(need.cache.total)}, in flight "
        f"{human_bytes(need.in_flight)}), of {human_bytes(machine.usable)} there are; {advice}; "
        "--force tries anyway"
    )


def check_conversion(plan: "Plan", config: "Config", force: bool) -> None:
    """Raises InputError if converting cannot be done in this machine's memory; says so if what
    it makes cannot run here.
    """
    from mlx_llama4.machine import this_machine
    from mlx_llama4.memory import PREFILL_SPAN, human_bytes, weight_bytes
    from mlx_llama4.planner import Usage, dtype_bytes, fit, need_of

    machine = this_machine()
    memory = human_bytes(machine.usable)
    if plan.peak_bytes > machine.usable and not force:
        without = "leave out --search, or " if plan.recipe.search else ""
        raise InputError(
            f"converting takes about {human_bytes(plan.peak_bytes)} of memory, of {memory} there "
            f"are; {without}use a larger machine; --force tries anyway"
        )
    usage = Usage(PREFILL_SPAN, dtype_bytes(plan.recipe.dtype, machine), fused=machine.has_gpu)
    weights = weight_bytes(config, lambda name, _: plan.packings[name], usage.dtype_bytes)
    total = need_of(config, sum(weights.values()), usage).total
    if fit(total, machine) == "no":
        bits = _fitting_bits(config, usage, machine)
        advice = f"--bits {bits} would fit" if bits else "no bits a weight would fit"
        terminal.note(
            f"The result takes {human_bytes(total)} of memory to run, and this machine has "
            f"{memory} for it: {advice}"
        )


def _fitting_bits(config: "Config", usage: "Usage", machine: "Machine") -> int | None:
    """Most bits a weight with which `usage` fits."""
    from mlx_llama4.planner import PLANNED_BITS, need_of, packed_weights

    for bits in reversed(PLANNED_BITS):
        weights = packed_weights(config, bits, usage.dtype_bytes)
        if need_of(config, sum(weights.values()), usage).total <= machine.usable:
            return bits
    return None
