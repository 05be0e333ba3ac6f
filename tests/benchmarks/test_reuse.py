"""`python -m benchmarks reuse`: which tokens each way finds, and all of it at a tiny size."""

import json
from pathlib import Path

import pytest

from benchmarks.harness.scaled_model import scaled_down, write_model
from benchmarks.reuse import QUESTION_TOKENS, WAYS, ask_in_all_ways
from mlx_llama4.opening import load_model
from tests.benchmarks.program import benchmark

CHUNK = 128


@pytest.mark.parametrize("tail", [0, 64, 127])
def test_what_each_way_finds(tmp_path: Path, tail: int) -> None:
    size = scaled_down(64, layers=4, experts=2, global_layers=True)
    folder, _ = write_model(size, None, tmp_path)
    tokens = 2 * CHUNK + tail
    found = ask_in_all_ways(load_model(folder), size, tokens, seed=0, folder=tmp_path)
    assert {way: asked.held for way, asked in found.items()} == {
        "first": 0,
        "same": tokens,
        "between": tokens,
        "disk": tokens,
        "small": 2 * CHUNK,
    }
    assert list(found) == list(WAYS)
    assert all(asked.seconds > 0 for asked in found.values())


@pytest.mark.slow
def test_reuse_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    arguments = ("--scale", 64, "--chunks", 1, "--rounds", 1, "--json", out)
    result = benchmark("reuse", *arguments)
    assert result.returncode == 0, result.stderr
    report = json.loads(out.read_text())
    assert list(report["tails"]) == ["0", "64", "127"]
    assert report["tails"]["64"]["disk"][0]["held"] == CHUNK + 64
    table = result.stdout.split("\n\n")[1].splitlines()
    assert [line.split("  ")[1] for line in table[1:]] == list(WAYS.values())
    assert f"a question of {QUESTION_TOKENS} tokens" in result.stdout
