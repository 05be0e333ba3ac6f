"""`python -m benchmarks turns`: what each engine is given, what is counted, and all of it once."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import turns
from benchmarks.harness.engines import OURS, Engine
from benchmarks.harness.scaled_model import LAYERS, scaled_down, write_model
from benchmarks.turns import (
    ANSWER_TOKENS,
    PEER,
    TURNS,
    Turn,
    crossings,
    figures_of,
    flops,
    heaviest_turn,
)
from mlx_llama4.opening import open_folder
from tests.benchmarks.program import benchmark

CHUNK = 100
# 90 tokens a turn: 60 to read, 30 to write.
CONVERSATION = [Turn(number, 90 * (number - 1), 90 * number - 30) for number in range(1, TURNS + 1)]


def test_crossing_a_border() -> None:
    """The token at position 100 is the first of a chunk: a prompt of 100 tokens ends before it."""
    assert not Turn(1, 0, 100).crosses_border(CHUNK)
    assert Turn(1, 0, 101).crosses_border(CHUNK)
    assert Turn(1, 99, 101).crosses_border(CHUNK)
    assert not Turn(1, 100, 101).crosses_border(CHUNK)
    assert crossings(CONVERSATION, CHUNK)[:4] == [2, 3, 4, 5]
    assert 1 not in crossings(CONVERSATION, CHUNK) and 10 not in crossings(CONVERSATION, CHUNK)


def test_figures() -> None:
    figures = figures_of(CONVERSATION, chunk=1000, heaviest=22)
    assert crossings(CONVERSATION, 1000) == [12, 23]  # the others in answers
    assert figures["seconds_30"] == 30 and figures["last_over_second"] == 15
    assert figures["heaviest_over_second"] == 11
    assert figures["seconds_crossing"] == 17.5
    assert figures["seconds_beside"] == (13 + 22) / 2


def test_flops() -> None:
    """Of Scout: attention to one chunk takes a third of what the feed-forward does, by design."""
    size = scaled_down(1, LAYERS, 16, global_layers=True)
    everything, far = flops(size, size.chunk)
    feed_forward = 12 * size.hidden_size * size.expert_width
    assert far == feed_forward / 3
    projections = 4 * 5120 * (5120 + 1024)
    assert everything == 4 * (feed_forward + projections) + far  # at a border, none is near
    assert flops(size, 2 * size.chunk)[1] == 2 * far
    assert heaviest_turn(CONVERSATION, replace(size, chunk=1000)) == 22  # the end of a chunk
    assert heaviest_turn(CONVERSATION, replace(size, chunk=10_000)) == 30


def test_ids_of_a_long_conversation(tmp_path: Path) -> None:
    size = scaled_down(64, layers=4, experts=2, global_layers=True)
    model, _ = write_model(size, None, tmp_path)
    processor = open_folder(model).processor
    assert 0 < turns.host_seconds(processor, 1000) < turns.host_seconds(processor, 50_000)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [OURS, PEER])
def test_turns_are_of_equal_length(engine: str, tmp_path: Path) -> None:
    """But for the first, which has what a conversation begins with."""
    size = scaled_down(64, layers=5, experts=2, global_layers=True)
    model, _ = write_model(size, None, tmp_path)
    turns.write_template(model)
    conversation = turns.hold_conversation(Engine(engine), model, 32, tmp_path)
    assert len(conversation) == TURNS and all(turn.seconds > 0 for turn in conversation)
    (read,) = {turn.tokens - turn.held for turn in conversation[1:]}
    assert 30 < read < 60
    steps = {b.held - a.held for a, b in itertools.pairwise(conversation[1:])}
    assert steps == {read + ANSWER_TOKENS - 1} or steps == {read + ANSWER_TOKENS}


@pytest.mark.slow
def test_turns_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    result = benchmark("turns", "--scale", 64, "--rounds", 1, "--json", out)
    assert result.returncode == 0, result.stderr
    report = json.loads(out.read_text())
    assert list(report["engines"]) == [OURS, PEER] and not report["left_out"]
    (figures,) = report["engines"][OURS]["rounds"]
    assert figures["last_over_second"] == figures["seconds_30"] / figures["seconds_2"]
    rows = [line.split("  ")[1] for line in result.stdout.split("\n\n")[1].splitlines()]
    assert rows == [
        *("one round", "turn 2", "turn 10", "turn 20", "turn 30", "turn 30 / turn 2"),
        *("turn 29 / turn 2", "turns that cross a border", "turns beside them"),
    ]


def test_a_peer_without_a_cache_between_turns() -> None:
    result = benchmark("turns", "--only", "mlx-vlm")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --only mlx-vlm: ")
