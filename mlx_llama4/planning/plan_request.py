"""Turns what a user asks for, a few numbers, into a whole plan with its streaming. Needs no MLX."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlx_llama4.checkpoint.meta.params import MAX_TILES
from mlx_llama4.hub.released import RELEASES
from mlx_llama4.planning.expert_weights import experts_in_bits, stored_experts
from mlx_llama4.planning.machine import Machine
from mlx_llama4.planning.placement import StreamingPlan, plan_streaming
from mlx_llama4.planning.planner import MemoryPlan, Subject, Usage, dtype_bytes, make_plan
from mlx_llama4.planning.releases import release_config
from mlx_llama4.planning.verdict import Verdict, judge, settled
from mlx_llama4.quantization import KVQuantization

if TYPE_CHECKING:
    from mlx_llama4.checkpoint.matching import Matching

DEFAULT_CONTEXT, SHORT_CONTEXT = 131_072, 8192


@dataclass(frozen=True)
class PlanRequest:
    """What a user asks a plan for."""

    context: int | None = None  # tokens; None: DEFAULT_CONTEXT, or the model's maximum
    bits: int | None = None  # of the weights; None: as stored, or what fits
    kv: KVQuantization | None = None  # of global layers' keys and values; None: not packed
    kv_group_size: int = 64  # of the packings of keys and values to compare
    images: int = 1  # pictures in the prompt, each with the most tiles


def plan_for(subject: Subject, machine: Machine, request: PlanRequest) -> MemoryPlan:
    """Raises InputError for a context beyond the model's, and for unknown packings."""
    config = subject.config
    usage = Usage(
        context=request.context or min(DEFAULT_CONTEXT, config.text.max_position_embeddings),
        dtype_bytes=subject.dtype_bytes,
        kv=request.kv,
        tiles=(MAX_TILES + 1,) * request.images if config.vision else (),
        fused=machine.has_gpu,
    )
    made = make_plan(subject, machine, usage, request.bits, request.kv_group_size)
    return settled(made, request.bits)


def streaming_of(plan: MemoryPlan, matching: "Matching | None") -> StreamingPlan | None:
    """The same with routed experts on the disk. matching: the stored tensors, if there are any."""
    subject = plan.subject
    if plan.chosen.bits is not None:
        experts = experts_in_bits(subject.config, plan.chosen.bits, subject.dtype_bytes)
    elif matching is not None:
        experts = stored_experts(matching, subject.config, subject.dtype_bytes)
    else:
        return None
    return plan_streaming(subject.config, experts, plan.usage, plan.machine)


def release_subject(name: str, machine: Machine) -> Subject:
    """One of the family's releases, by its published sizes."""
    return Subject(RELEASES[name].title, release_config(name), dtype_bytes(None, machine))


def judged(
    model: str,
    subject: Subject,
    matching: "Matching | None",
    machine: Machine,
    request: PlanRequest,
) -> tuple[MemoryPlan, StreamingPlan | None, Verdict]:
    """The plan, its streaming and the verdict. Where nobody asked for a context and the default one
    does not fit in any way, a short one is planned instead.
    """
    made = plan_for(subject, machine, request)
    streaming = streaming_of(made, matching)
    verdict = judge(model, made, request.bits, streaming)
    if verdict.how in ("no", "shorter") and request.context is None:
        limit = subject.config.text.max_position_embeddings
        short = replace(request, context=min(SHORT_CONTEXT, limit))
        made = plan_for(subject, machine, short)
        streaming = streaming_of(made, matching)
        verdict = judge(model, made, request.bits, streaming)
    return made, streaming, verdict


def release_verdict(name: str, machine: Machine) -> Verdict:
    """What to do with a release on this machine."""
    return judged(name, release_subject(name, machine), None, machine, PlanRequest())[2]
