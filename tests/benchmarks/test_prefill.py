"""`python -m benchmarks prefill` and `positions`: what they run, and all of it at tiny sizes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.engines import OURS, Engine
from benchmarks.harness.scaled_model import SCALES, feed_forward_over_attention, scaled_down
from benchmarks.harness.source import Size, write_checkpoint
from benchmarks.positions import OFFSETS, RELEASED, measure, write_layer
from mlx_llama4.config import load_config
from tests.benchmarks.program import benchmark

BELOW = ("  of the matmul limit", "  peak memory", "  of the process")
TINY = ("--scale", 64, "--layers", 4, "--experts", 2, "--rounds", 1)


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_keeps_the_proportions(scale: int) -> None:
    size = scaled_down(scale, 5, 16, global_layers=True)
    assert size.heads * size.head_dim == size.hidden_size == 5120 // scale
    assert size.heads == 5 * size.key_value_heads
    assert feed_forward_over_attention(size) == 3
    assert size.chunk == 8192 // scale


def test_scale_1_is_scout() -> None:
    expected = Size(5120, 5, 16, 8192, 2048, head_dim=128, heads=40, key_value_heads=8)
    assert scaled_down(1, 5, 16, global_layers=True) == expected


@pytest.mark.parametrize("global_layers", [True, False])
def test_which_layers_are_global(tmp_path: Path, global_layers: bool) -> None:
    size = scaled_down(64, 5, 2, global_layers)
    read = load_config(write_checkpoint(size, tmp_path / "source")).text
    kinds = [layer.attention for layer in read.layers]
    fourth = "global" if global_layers else "chunked"
    assert kinds == ["chunked", "chunked", "chunked", fourth, "chunked"]
    assert read.attention_chunk_size == read.floor_scale == 128


@pytest.mark.slow
def test_prefill_from_end_to_end(tmp_path: Path) -> None:
    """Ours and mlx-lm, prompts of one chunk and of two."""
    out = tmp_path / "a.json"
    lengths = ("--chunks", 1, "--chunks", 2)
    result = benchmark("prefill", *TINY, *lengths, "--only", f"{OURS},mlx-lm", "--json", out)
    assert result.returncode == 0, result.stderr
    report = json.loads(out.read_text())
    assert list(report["engines"]) == [OURS, "mlx-lm"] and not report["left_out"]
    for engine in report["engines"].values():
        (figures,) = engine["rounds"]
        assert figures["seconds_1"] > 0
        assert figures["seconds_a_token_2"] == figures["seconds_2"] / 256
        # At least the global layer's keys and values, and no more than all layers' and a step.
        kept = 256 * 2 * 16 * 4
        assert kept < figures["peak_bytes_2"] < 100 * kept
        assert figures["share_of_matmul_1"] > 0
    assert labels(result.stdout) == ["one round", "1 chunk", *BELOW, "2 chunks", *BELOW]


@pytest.mark.slow
def test_prefill_of_a_preset() -> None:
    result = benchmark(
        *("prefill", "--preset", "tiny", "--chunks", 1, "--only", OURS, "--rounds", 1)
    )
    assert result.returncode == 0, result.stderr
    assert "preset tiny, 4 bits, float32 what is not packed" in result.stdout
    assert "chunks of 256 tokens, in steps of 256" in result.stdout
    assert labels(result.stdout) == ["one round", "1 chunk", *BELOW]


def labels(output: str) -> list[str]:
    """The table's first column."""
    width = 2 + len("  of the matmul limit")
    return [line[2:width].rstrip() for line in output.split("\n\n")[1].splitlines()]


def test_prefill_of_packed_weights_without_global_layers() -> None:
    result = benchmark(
        *("prefill", "--scale", 16, "--layers", 1, "--experts", 2, "--rounds", 1),
        *("--chunks", 1, "--bits", 4, "--chunked-only"),
    )
    assert result.returncode == 0, result.stderr
    setup, _ = result.stdout.split("\n\n")
    assert setup.startswith("prefill, chunked layers alone\n")
    assert "weights in 4 bits, 1 layers (none global), hidden size 320" in setup
    assert labels(result.stdout) == ["one round", "1 chunk, a token", *BELOW]


@pytest.mark.slow
def test_drift_of_ours_and_of_absolute_positions(tmp_path: Path) -> None:
    """A small layer with the releases' heads and chunk; the peer is there wherever we are."""
    size = replace(RELEASED, hidden_size=64, heads=5, key_value_heads=1)
    layer = write_layer(size, 64, "float32", tmp_path / "layer.safetensors")
    ours = measure(Engine(OURS), size, layer)
    peer = measure(Engine("mlx-lm"), size, layer)
    assert list(ours) == list(peer) == ["Scout", "Maverick"]
    for kind in ours:
        assert list(ours[kind]) == list(OFFSETS)
        assert max(ours[kind].values()) <= 1e-5
        assert peer[kind][0] == 0
        assert 1e-5 < peer[kind][131_072] < peer[kind][9_994_240]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prefill", "--scale", 3], "--scale 3: choose of 1, 2, 4, 8, 16, 32, 64"),
        (["prefill", "--chunked-only", "--only", "mlx-lm"], "--chunked-only is ours alone"),
        (["prefill", "--bits", 4, "--scale", 64, "--only", OURS], "--bits 4: "),
        (["prefill", "--bits", 7], "--bits 7: "),
        (["prefill", "--preset", "huge"], "--preset huge: choose of tiny"),
        (["prefill", "--preset", "tiny", "--layers", 4], "--preset tiny is a whole model"),
        (["positions", "--dtype", "float8"], "--dtype float8: choose of float32, bfloat16"),
        (["positions", "--only", "nobody"], "--only nobody: no such engine"),
    ],
)
def test_bad_options_end_in_one_line(arguments: list[object], words: str) -> None:
    result = benchmark(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and words in line
