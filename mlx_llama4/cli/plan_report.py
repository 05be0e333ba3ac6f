"""Print what `plan` found: a page for people, or one JSON object."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mlx_llama4.cli.console import terminal

if TYPE_CHECKING:
    from mlx_llama4.planning.machine import Machine
    from mlx_llama4.planning.placement import Placement, StreamingPlan
    from mlx_llama4.planning.planner import MemoryPlan
    from mlx_llama4.planning.verdict import Verdict
    from mlx_llama4.tensors import Part

COLUMNS = 80  # of a terminal when it opens
# Parts of the model that share a row.
GROUPS: "dict[str, tuple[Part, ...]]" = {
    "routed experts": ("routed experts",),
    "shared experts": ("shared expert",),
    "dense MLPs": ("dense MLP",),
    "attention, router, norms": ("attention", "router", "norms"),
    "embedding, head": ("embedding", "head"),
    "vision": ("vision tower", "projector"),
}


def print_plan(
    plan: "MemoryPlan",
    streaming: "StreamingPlan | None",
    verdict: "Verdict",
    is_this_machine: bool,
) -> None:
    bits = "as stored" if plan.chosen.bits is None else f"{plan.chosen.bits} bits"
    kv_bits = plan.usage.kv.bits if plan.usage.kv else 8 * plan.usage.dtype_bytes
    context = f"{plan.usage.context:,} tokens"
    terminal.line(_first_line(verdict))
    terminal.line(f"{plan.subject.name}, {bits}; {context}, keys and values in {kv_bits} bits")
    terminal.line(_machine(plan.machine, is_this_machine))
    terminal.table(_bytes_rows(plan), right=(1,))
    terminal.line()
    terminal.table(_fit_rows(plan, streaming), right=(1,))
    _print_reading(streaming)
    terminal.line()
    _print_choices(plan)
    terminal.line(f"Next: {verdict.command}")
    if plan.wired_limit_command is not None:
        terminal.line("More than the GPU may hold by default. After each start of the Mac, first:")
        terminal.line(f"  {plan.wired_limit_command}")


def _first_line(verdict: "Verdict") -> str:
    """The verdict, followed by the next command if both fit in 80 columns."""
    both = f"{verdict.line}; next: {verdict.command}"
    return both if len(both) <= COLUMNS else verdict.line


def _machine(machine: "Machine", is_this_machine: bool) -> str:
    from mlx_llama4.planning.machine import GIB
    from mlx_llama4.units import human_bytes

    size = f"{human_bytes(machine.memory)} ({machine.memory / GIB:.3g} GiB)"
    if machine.wired is None:
        return f"this machine of {size}"
    return (
        f"{'this' if is_this_machine else 'a'} Mac of {size}: {human_bytes(machine.usable)} "
        f"for a model, {human_bytes(machine.wired)} by default"
    )


def _bytes_rows(plan: "MemoryPlan") -> list[tuple[str, ...]]:
    from mlx_llama4.units import human_bytes

    text, need, weights = plan.subject.config.text, plan.chosen.need, plan.chosen.weights
    rows: list[tuple[str, ...]] = []
    for group, parts in GROUPS.items():
        if nbytes := sum(weights.get(part, 0) for part in parts):
            rows.append((group, human_bytes(nbytes), ""))
    chunk = text.attention_chunk_size
    again, unpacks = max(need.dequantized, need.growing), need.dequantized > need.growing
    rows += [
        ("all weights", human_bytes(need.weights), ""),
        (
            "KV cache, global layers",
            human_bytes(need.cache.global_layers),
            f"{plan.cache_bytes_per_token:,} B a token",
        ),
        (
            "KV cache, chunked layers",
            human_bytes(need.cache.chunked_layers),
            f"a chunk of {chunk:,} tokens at most" if chunk else "no chunks: all tokens",
        ),
        (
            f"prefill of {min(plan.usage.span, plan.usage.context):,} tokens",
            human_bytes(need.prefill),
            f"{human_bytes(again)} of it a layer's KV, {'unpacked' if unpacks else 'growing'}",
        ),
    ]
    if need.features:
        tower = f"and {human_bytes(need.vision)} before the prefill"
        rows.append((f"pictures: {sum(plan.usage.tiles)} tiles", human_bytes(need.features), tower))
    rows.append(("total", human_bytes(need.total), ""))
    return rows


def _fit_rows(plan: "MemoryPlan", streaming: "StreamingPlan | None") -> list[tuple[str, ...]]:
    from mlx_llama4.units import human_bytes

    verdict = {"yes": "fits", "raised": "fits if the limit is raised", "no": "does not fit"}
    rows: list[tuple[str, ...]] = [
        ("all in memory", human_bytes(plan.chosen.need.total), verdict[plan.chosen.fit])
    ]
    if streaming is not None:
        least, default = streaming.least, streaming.default
        fits = f"{verdict[least.fit]}, an expert at a time in memory"
        rows.append(("experts streamed, least", human_bytes(least.need.total), fits))
        if default.fit != "no":
            fits = f"{verdict[default.fit]}, {default.kept:.0%} of the experts in memory"
            rows.append(("experts streamed", human_bytes(default.need.total), fits))
    return rows


def _print_reading(streaming: "StreamingPlan | None") -> None:
    from mlx_llama4.planning.placement import tokens_per_second
    from mlx_llama4.units import human_bytes

    if streaming is None or streaming.default.fit == "no":
        return
    nbytes = streaming.default.bytes_per_token
    if rates := tokens_per_second(nbytes):
        disks, tokens = (
            ", ".join(f"{number:.2g}" if number < 10 else f"{number:,.0f}" for number in column)
            for column in zip(*rates.items(), strict=True)
        )
        terminal.line(
            f"  streamed: {human_bytes(nbytes)} read a token if all experts are equally likely,"
        )
        terminal.line(f"  at most {tokens} tokens/s at {disks} GB/s (computed)")


def _print_choices(plan: "MemoryPlan") -> None:
    from mlx_llama4.planning.planner import tokens_name
    from mlx_llama4.quantization import UNPACKED_BITS
    from mlx_llama4.units import human_bytes

    names = {UNPACKED_BITS: f"KV {8 * plan.usage.dtype_bytes} bits"}
    kv_bits = list(plan.chosen.largest)
    kv_names = [names.get(bits, f"KV {bits} bits") for bits in kv_bits]
    rows = [("bits", "weights", "total", "fits", *kv_names)]
    for choice in plan.choices:
        largest = [choice.largest[bits] for bits in kv_bits]
        rows.append(
            (
                "as stored" if choice.bits is None else str(choice.bits),
                human_bytes(choice.need.weights),
                human_bytes(choice.need.total),
                choice.fit,
                *(tokens_name(tokens) if tokens else "none" for tokens in largest),
            )
        )
    terminal.line("The longest context that fits, by bits a weight and of keys and values:")
    terminal.table(rows, right=(1, 2, 4, 5, 6))
    if plan.chosen.fit != "raised" and any(choice.fit == "raised" for choice in plan.choices):
        terminal.line("  raised: if the GPU may hold more than by default, by iogpu.wired_limit_mb")


def plan_json(
    plan: "MemoryPlan", streaming: "StreamingPlan | None", verdict: "Verdict"
) -> dict[str, Any]:
    need, kv = plan.chosen.need, plan.usage.kv
    return {
        "model": plan.subject.name,
        "verdict": {
            "how": verdict.how,
            "bits": verdict.bits,
            "context": verdict.context,
            "line": verdict.line,
            "next": verdict.command,
        },
        "released": True,
        "context": plan.usage.context,
        "context_limit": plan.subject.config.text.max_position_embeddings,
        "kv_bits": kv.bits if kv else 8 * plan.usage.dtype_bytes,
        "kv_group_size": kv.group_size if kv else None,
        "tiles": sum(plan.usage.tiles),
        "machine": asdict(plan.machine),
        "bits": plan.chosen.bits,
        "weights": dict(plan.chosen.weights),
        "weight_bytes": need.weights,
        "cache": asdict(need.cache),
        "cache_bytes_per_token": plan.cache_bytes_per_token,
        "activation_bytes": need.activations,
        "dequantized_bytes": need.dequantized,
        "growing_bytes": need.growing,
        "vision_bytes": need.vision,
        "feature_bytes": need.features,
        "total_bytes": need.total,
        "fits": plan.chosen.fit,
        "wired_limit_command": plan.wired_limit_command,
        "streamed_experts": streaming
        and {
            "least": _streamed_json(streaming.least),
            "default": _streamed_json(streaming.default),
        },
        "machines": plan.machines,
        "choices": [
            {
                "bits": choice.bits,
                "weight_bytes": choice.need.weights,
                "total_bytes": choice.need.total,
                "fits": choice.fit,
                "largest_context": {str(bits): tokens for bits, tokens in choice.largest.items()},
            }
            for choice in plan.choices
        ],
    }


def _streamed_json(placement: "Placement") -> dict[str, Any]:
    from mlx_llama4.planning.placement import tokens_per_second

    rates = tokens_per_second(placement.bytes_per_token)
    return {
        "expert_memory": placement.streaming and placement.streaming.memory,
        "prefill_step": placement.usage.span,
        "total_bytes": placement.need.total,
        "fits": placement.fit,
        "share_in_memory": placement.kept,
        "bytes_per_token": placement.bytes_per_token,
        "tokens_per_second": {f"{disk:g}": tokens for disk, tokens in rates.items()},
    }


def print_announced(machine: "Machine", bits: int | None, as_json: bool) -> None:
    """Print what is known of a model whose weights are not released."""
    from mlx_llama4.planning.planner import DEFAULT_BITS, announced_weights
    from mlx_llama4.planning.releases import BEHEMOTH
    from mlx_llama4.units import human_bytes

    bits = DEFAULT_BITS if bits is None else bits
    weights = announced_weights(BEHEMOTH.parameters, bits)
    machines = -(-weights // machine.usable) if machine.usable else None
    if as_json:
        known = asdict(BEHEMOTH) | {"released": False, "bits": bits, "weight_bytes": weights}
        unknown = {"cache": None, "total_bytes": None}
        terminal.line(json.dumps(known | unknown | {"machines": machines}, indent=2))
        return
    terminal.line(f"{BEHEMOTH.name}: its weights are not released, its layers are not public")
    terminal.line(
        f"  {BEHEMOTH.active_parameters / 1e9:.0f}B active parameters, {BEHEMOTH.experts} experts, "
        f"about {BEHEMOTH.parameters / 1e12:g}T in all"
    )
    terminal.line(f"  weights in {bits} bits: about {human_bytes(weights)}; KV cache: unknown")
    if machines is not None:
        room, memory = human_bytes(machine.usable), human_bytes(machine.memory)
        terminal.line(f"  {room} for a model on each machine of {memory}: {machines} at least")
