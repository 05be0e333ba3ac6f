"""`python -m benchmarks eviction`: banks on traces short enough to follow by hand."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.eviction.command import (
    HALF_LIVES,
    check_same_model,
    count_hits,
    hit_rates,
    layer_sessions,
    left_heat,
    long_heat,
    slot_counts,
)
from benchmarks.eviction.policies import (
    Bank,
    LeastFrequentlyUsed,
    LeastRecentlyUsed,
    Optimum,
    Pinned,
)
from benchmarks.harness.shares import Share
from mlx_llama4.errors import InputError
from mlx_llama4.offload.trace import RoutingStep, RoutingTrace, TraceHeader
from tests.benchmarks.program import benchmark


def hits(bank: Bank, passes: Sequence[Sequence[int]]) -> list[int]:
    return [bank.use(experts) for experts in passes]


def each(text: str) -> list[list[int]]:
    """ "0 1 0" → a pass for each, "012 3": the first of three tokens."""
    return [[int(digit) for digit in word] for word in text.split()]


def test_least_recently_used() -> None:
    assert hits(LeastRecentlyUsed(2), each("0 1 0 2 1 2 0")) == [0, 0, 1, 0, 0, 1, 0]


def test_least_recently_used_keeps_a_prompts_last() -> None:
    assert hits(LeastRecentlyUsed(2), each("0123 3 2 1")) == [0, 1, 1, 0]


def test_least_frequently_used() -> None:
    passes = each("0 0 1 1 2 0 1")
    picky = LeastFrequentlyUsed(2, half_life=100, only_hotter=True)
    assert hits(picky, passes) == [0, 1, 0, 1, 0, 1, 1]
    # Taking 2 in, it gives up 0, the older of two with as many uses, and then 2 for 0.
    assert hits(LeastFrequentlyUsed(2, half_life=100), passes) == [0, 1, 0, 1, 0, 0, 1]


def test_a_short_half_life_forgets() -> None:
    passes = each("0 0 0 1 2 1 2 0")
    for only_hotter in (False, True):
        for half_life, hit in ((100, 1), (0.5, 0)):
            bank = LeastFrequentlyUsed(2, half_life, only_hotter=only_hotter)
            assert hits(bank, passes)[-1] == hit


def test_scores_halve_with_the_half_life() -> None:
    bank = LeastFrequentlyUsed(1, half_life=2)
    hits(bank, each("0 1 1"))
    assert bank.heat() == pytest.approx({0: 0.5, 1: 1 + 2**-0.5})
    two_a_token = LeastFrequentlyUsed(1, half_life=2, per_token=2)
    hits(two_a_token, each("01 23 45"))
    assert two_a_token.heat()[1] == pytest.approx(0.5)


def test_scores_of_a_long_session_stay_finite() -> None:
    bank = LeastFrequentlyUsed(1, half_life=1)
    hits(bank, [[0]] * 5000)
    assert bank.heat() == {0: pytest.approx(2)}


def test_remembered_heat_fills_the_bank() -> None:
    bank = LeastFrequentlyUsed(2, half_life=100, heat={0: 1.0, 1: 3.0, 2: 5.0})
    assert hits(bank, each("1 2 0")) == [1, 1, 0]


def test_a_prompt_leaves_the_hottest() -> None:
    bank = LeastFrequentlyUsed(2, half_life=100)
    assert hits(bank, each("2200111 0 1 2")) == [0, 1, 1, 0]


def test_pinned() -> None:
    assert hits(Pinned(1, Counter([1, 1, 0])), each("0 1 2 1")) == [0, 1, 0, 1]


def test_optimum() -> None:
    passes = [(experts, True) for experts in each("0 1 2 0 1 2")]
    assert sum(hits(Optimum(1, passes), each("0 1 2 0 1 2"))) == 1
    assert sum(hits(Optimum(2, passes), each("0 1 2 0 1 2"))) == 2
    assert sum(hits(Optimum(3, passes), each("0 1 2 0 1 2"))) == 3


def test_the_optimum_leaves_to_a_prompt_what_it_reads_anyway() -> None:
    passes = [([0], True), ([1], True), ([0, 2], False), ([1], True), ([0], True)]
    # Room for 1 alone: 0 would only be kept for the prompt.
    assert hits(Optimum(1, passes), [experts for experts, _ in passes])[3:] == [1, 0]


def test_the_optimum_is_the_best_of_all_ways() -> None:
    source = random.Random(0)
    for _ in range(60):
        passes = []
        for _ in range(8):
            prompt = source.random() < 0.2
            count = source.randint(2, 3) if prompt else 1
            passes.append(([source.randrange(4) for _ in range(count)], not prompt))
        slots = source.randint(1, 2)
        found = count_hits(Optimum(slots, passes), passes, start=0).right
        assert found == best(passes, slots)


def best(passes: Sequence[tuple[Sequence[int], bool]], slots: int) -> int:
    """Most hits that count, by trying all."""
    reached = {frozenset(): 0}
    for experts, counts in passes:
        following: dict[frozenset[int], int] = {}
        for held, total in reached.items():
            now = total + counts * sum(expert in held for expert in experts)
            at_hand = held | set(experts)
            for size in range(slots + 1):
                for kept in map(frozenset, itertools.combinations(sorted(at_hand), size)):
                    following[kept] = max(now, following.get(kept, 0))
        reached = following
    return max(reached.values())


def trace(text: str, layers: Sequence[int] = (1, 3), experts: int = 8) -> RoutingTrace:
    """As `each`, the same in all layers."""
    steps = [RoutingStep(dict.fromkeys(layers, one)) for one in each(text)]
    return RoutingTrace(TraceHeader("tiny", experts, 1, tuple(layers)), steps)


def test_slot_counts() -> None:
    assert slot_counts(128) == [13, 32, 64, 96]
    assert slot_counts(16) == [2, 4, 8, 12]
    assert slot_counts(2) == [1, 2]


def test_only_generated_tokens_count() -> None:
    passes = layer_sessions([trace("01 1 0 0")])[0].passes
    assert passes == [([0, 1], False), ([1], True), ([0], True), ([0], True)]
    assert count_hits(LeastRecentlyUsed(1), passes, start=0) == Share(2, 3)
    assert count_hits(LeastRecentlyUsed(1), passes, start=2) == Share(1, 2)


def test_rates_of_all_layers_and_sessions_together() -> None:
    traces = [trace("01 1 0 0 1"), trace("2 2 2 2")]
    later, start = hit_rates(traces)
    # 1 slot; the second halves are "0 1" and "2 2", in two layers.
    assert later["least recently used"][1] == Share(2 * (1 + 2), 2 * 4)
    assert start["least recently used"][1] == Share(2 * (2 + 3), 2 * 8)
    assert later["optimum (needs the future)"][2] == Share(2 * 4, 2 * 4)
    assert later["pinned, by the first half"][1] == Share(2 * (1 + 2), 2 * 4)
    # What the one session used is no use to the other.
    assert later["pinned, by the other sessions"][1] == Share(0, 2 * 4)
    # The layers are alike, so that two slots for both are one for each.
    assert later["least recently used, one pool for all layers"][1] == Share(2 * 3, 2 * 4)


def test_one_pool_gives_slots_to_the_layer_that_uses_more() -> None:
    steps = [RoutingStep({0: [token % 3], 1: [0]}) for token in range(12)]
    mixed = RoutingTrace(TraceHeader("tiny", 8, 1, (0, 1)), steps)
    later, _ = hit_rates([mixed])
    assert later["least recently used"][2] == Share(6, 12)
    assert later["least recently used, one pool for all layers"][2] == Share(12, 12)


def test_without_other_sessions_nothing_is_remembered() -> None:
    later, start = hit_rates([trace("0 1 0 1")])
    assert not any("session" in name for name in (*later, *start))


def test_heat_of_other_sessions() -> None:
    layer = layer_sessions([trace("0 0"), trace("1 2"), trace("2 2")])[0]
    half_life = HALF_LIVES[0]
    decay = 2 ** (-1 / half_life)
    assert left_heat(layer, half_life) == pytest.approx({1: decay**3, 2: 1 + decay + decay**2})
    shares = long_heat(layer, half_life)
    assert shares[2] / shares[1] == pytest.approx(3)
    assert sum(shares.values()) == pytest.approx(1 / (1 - decay))


def test_traces_that_do_not_go_together() -> None:
    paths = [Path("one"), Path("two")]
    with pytest.raises(InputError, match="two is of tiny and one of tiny, or their layers"):
        check_same_model(paths, [trace("0 1"), trace("0 1", layers=(1,))])
    with pytest.raises(InputError, match="two has 1 generated tokens"):
        check_same_model(paths, [trace("0 1"), trace("012 1")])


def write(path: Path, one: RoutingTrace) -> Path:
    lines = [one.header.as_json()] + [
        {"step": number, "layer": layer, "experts": experts}
        for number, step in enumerate(one.steps)
        for layer, experts in step.experts.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_eviction_from_end_to_end(tmp_path: Path) -> None:
    files = [write(tmp_path / "a", trace("01 1 0 0 1")), write(tmp_path / "b", trace("2 2 2 2"))]
    out = tmp_path / "out.json"
    result = benchmark("eviction", *files, "--json", out)
    assert result.returncode == 0, result.stderr
    report = json.loads(out.read_text())
    assert report["second_half"]["least recently used"]["1"] == {"hits": 6, "uses": 8}
    assert "sessions  2, with 2 tokens of prompts and 8 generated" in result.stdout
    assert "1 of 8  2 of 8" in result.stdout
    files[1].write_text("{}\n")
    result = benchmark("eviction", *files)
    assert result.returncode == 2
    assert result.stderr == f"error: {files[1]} is not a routing trace; record one with --trace\n"
