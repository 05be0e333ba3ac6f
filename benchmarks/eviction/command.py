"""`python -m benchmarks eviction`: which experts to keep in memory, by what tokens chose.

Simulates policies on traces; each trace is one session. Only generated tokens count: a prompt's
pass needs all of its experts, whatever was kept.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.eviction.policies import (
    Bank,
    LeastFrequentlyUsed,
    LeastRecentlyUsed,
    Optimum,
    Pinned,
)
from benchmarks.harness import options
from benchmarks.harness.outputs import Outputs
from benchmarks.harness.shares import Share, total
from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import InputError
from mlx_llama4.offload.heat import HALF_LIFE
from mlx_llama4.offload.trace import RoutingTrace, TraceHeader, read_trace

SLOT_SHARES = (0.1, 0.25, 0.5, 0.75)  # of a layer's experts
HALF_LIVES = (16, 32, 64, 128, 256, 1024)  # tokens

# A pass through one layer: the experts that its tokens chose, and whether it counts.
Pass = tuple[Sequence[int], bool]


@dataclass(frozen=True)
class LayerSession:
    """One layer's passes in one session."""

    passes: Sequence[Pass]
    half: int  # where the second half of them begins
    others: Sequence[Sequence[Pass]]  # its passes in the other sessions
    experts_per_token: int


# A session and the number of slots → the bank at its start.
Policy = Callable[[LayerSession, int], Bank]
# Name of a policy → slots → hits of all uses.
HitRates = dict[str, dict[int, Share]]


@terminal.reports_errors
def eviction(
    traces: Annotated[
        list[Path],
        typer.Argument(metavar="TRACE...", help="Traces of one model, one for each session."),
    ],
    json: options.Json = None,
) -> None:
    """Simulate which experts to keep on recorded traces: hit rates of policies.

    \b
    Example:
      mlx-llama4 chat --model scout-4bit --trace monday.jsonl
      python -m benchmarks eviction monday.jsonl tuesday.jsonl
    """
    outputs = Outputs(json)
    read = [read_trace(path) for path in traces]
    header = check_same_model(traces, read)
    with terminal.status("Simulating"):
        later, start = hit_rates(read)
    _print(header, read, later, start)
    outputs.write_json(
        {
            "model": header.as_json(),
            "traces": [str(path) for path in traces],
            "second_half": _as_json(later),
            "from_the_start": _as_json(start),
        }
    )


def check_same_model(paths: Sequence[Path], traces: Sequence[RoutingTrace]) -> TraceHeader:
    first = traces[0].header
    for path, trace in zip(paths, traces, strict=True):
        if trace.header != first:
            raise InputError(
                f"{path} is of {trace.header.model} and {paths[0]} of {first.model}, or their "
                "layers or experts differ; give traces of one model"
            )
        counted = [step for step in trace.steps if trace.is_decode(step)]
        if len(counted) < 2:
            raise InputError(f"{path} has {len(counted)} generated tokens; record a longer answer")
    return first


def hit_rates(traces: Sequence[RoutingTrace]) -> tuple[HitRates, HitRates]:
    """In the second halves of all sessions, and from their starts, all layers together."""
    header = traces[0].header
    slots = slot_counts(header.num_experts)
    later: HitRates = {}
    start: HitRates = {}
    for layer in layer_sessions(traces):
        has_others = len(layer.others) > 0
        _count(later, later_policies(has_others), slots, layer, layer.half)
        _count(start, starting_policies(has_others), slots, layer, 0)
    pool = [_pooled(trace) for trace in traces]
    for count in slots:
        found = [
            count_hits(LeastRecentlyUsed(count * len(header.layers)), passes, _half(passes))
            for passes in pool
        ]
        later.setdefault("least recently used, one pool for all layers", {})[count] = total(found)
    return later, start


def slot_counts(num_experts: int) -> list[int]:
    """Slots of a layer, in ascending order, no number twice."""
    return sorted({max(1, round(share * num_experts)) for share in SLOT_SHARES})


def layer_sessions(traces: Sequence[RoutingTrace]) -> list[LayerSession]:
    found = []
    for layer in traces[0].header.layers:
        passes = [
            [(step.experts[layer], trace.is_decode(step)) for step in trace.steps
             if layer in step.experts]
            for trace in traces
        ]  # fmt: skip
        for number, own in enumerate(passes):
            others = passes[:number] + passes[number + 1 :]
            found.append(LayerSession(own, _half(own), others, traces[0].header.experts_per_token))
    return found


def _pooled(trace: RoutingTrace) -> list[Pass]:
    """The passes of all layers in the order of time; each layer has expert numbers of its own."""
    count = trace.header.num_experts
    return [
        ([layer * count + expert for expert in experts], trace.is_decode(step))
        for step in trace.steps
        for layer, experts in step.experts.items()
    ]


def _half(passes: Sequence[Pass]) -> int:
    """The index of the pass after half of those that count."""
    counted = [number for number, (_, counts) in enumerate(passes) if counts]
    return counted[len(counted) // 2]


def count_hits(bank: Bank, passes: Sequence[Pass], start: int) -> Share:
    """Hits and uses in the passes from `start` on that count; earlier ones warm the bank."""
    hits = uses = 0
    for number, (experts, counts) in enumerate(passes):
        found = bank.use(experts)
        if counts and number >= start:
            hits += found
            uses += len(experts)
    return Share(hits, uses)


def _count(
    rates: HitRates,
    policies: Mapping[str, Policy],
    slots: Sequence[int],
    layer: LayerSession,
    start: int,
) -> None:
    """Add a layer's hits to `rates`."""
    for name, policy in policies.items():
        row = rates.setdefault(name, {})
        for count in slots:
            found = count_hits(policy(layer, count), layer.passes, start)
            row[count] = total([row.get(count, Share(0, 0)), found])


def later_policies(has_others: bool) -> dict[str, Policy]:
    policies: dict[str, Policy] = {
        "least recently used": lambda layer, slots: LeastRecentlyUsed(slots)
    }
    for half_life in HALF_LIVES:
        policies[_name(half_life)] = _most_often(half_life)
    policies[f"{_name(HALF_LIFE)}, colder ones pass through"] = _most_often(
        HALF_LIFE, only_hotter=True
    )
    policies["pinned, by the first half"] = lambda layer, slots: Pinned(
        slots, uses_of([layer.passes[: layer.half]])
    )
    if has_others:
        policies["pinned, by the other sessions"] = _pinned_by_others
    policies["optimum (needs the future)"] = _optimum
    return policies


def starting_policies(has_others: bool) -> dict[str, Policy]:
    policies: dict[str, Policy] = {
        "least recently used": lambda layer, slots: LeastRecentlyUsed(slots),
        f"{_name(HALF_LIFE)}, nothing remembered": _most_often(HALF_LIFE),
    }
    if has_others:
        policies["heat that the session before left"] = _most_often(HALF_LIFE, left_heat)
        policies["heat by all other sessions alike"] = _most_often(HALF_LIFE, long_heat)
        policies["pinned, by the other sessions"] = _pinned_by_others
    policies["optimum (needs the future)"] = _optimum
    return policies


def _name(half_life: int) -> str:
    return f"most often used, half-life {half_life}"


def _most_often(
    half_life: int,
    heat: Callable[[LayerSession, int], dict[int, float]] = lambda layer, half_life: {},
    only_hotter: bool = False,
) -> Policy:
    return lambda layer, slots: LeastFrequentlyUsed(
        slots, half_life, layer.experts_per_token, heat(layer, half_life), only_hotter
    )


def left_heat(layer: LayerSession, half_life: int) -> dict[int, float]:
    """The scores after the other sessions have run one after another."""
    bank = LeastFrequentlyUsed(1, half_life, layer.experts_per_token)
    for passes in layer.others:
        for experts, _ in passes:
            bank.use(experts)
    return bank.heat()


def long_heat(layer: LayerSession, half_life: int) -> dict[int, float]:
    """Each expert's share of all uses, scaled to what scores add up to in the long run."""
    uses = uses_of(layer.others)
    growth = 2 ** (1 / (half_life * layer.experts_per_token))
    whole = growth / (growth - 1)  # 1 + 1/growth + 1/growth² + …
    return {expert: whole * count / uses.total() for expert, count in uses.items()}


def _pinned_by_others(layer: LayerSession, slots: int) -> Bank:
    return Pinned(slots, uses_of(layer.others))


def _optimum(layer: LayerSession, slots: int) -> Bank:
    return Optimum(slots, layer.passes)


def uses_of(sessions: Sequence[Sequence[Pass]]) -> Counter[int]:
    return Counter(expert for passes in sessions for experts, _ in passes for expert in experts)


def _print(
    header: TraceHeader, traces: Sequence[RoutingTrace], later: HitRates, start: HitRates
) -> None:
    steps = [(trace.is_decode(step), step.choices) for trace in traces for step in trace.steps]
    prompt = sum(choices for is_decode, choices in steps if not is_decode)
    generated = sum(is_decode for is_decode, _ in steps)
    terminal.line("experts found in memory by generated tokens, simulated")
    terminal.table(
        [
            (
                "model",
                f"{header.model}: {len(header.layers)} MoE layers of {header.num_experts} experts, "
                f"{header.experts_per_token} a token",
            ),
            (
                "sessions",
                f"{len(traces)}, with {prompt // header.experts_per_token:,} tokens of prompts "
                f"and {generated:,} generated",
            ),
        ]
    )
    _print_rates(header, "second half of each session", later)
    _print_rates(header, "from the start of each session", start)


def _print_rates(header: TraceHeader, heading: str, rates: HitRates) -> None:
    slots = slot_counts(header.num_experts)
    rows = [(heading, *(f"{count} of {header.num_experts}" for count in slots))]
    for name, row in rates.items():
        rows.append((name, *(f"{row[count].value:.1%}" for count in slots)))
    terminal.line()
    terminal.table(rows, right=tuple(range(1, len(rows[0]))))


def _as_json(rates: HitRates) -> dict[str, dict[int, dict[str, int]]]:
    return {
        name: {slots: {"hits": share.right, "uses": share.asked} for slots, share in row.items()}
        for name, row in rates.items()
    }
