"""`python -m benchmarks convert`: its sources, and the whole way on the demo's checkpoint."""

import json
import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.harness.engines import OURS
from benchmarks.harness.source import (
    Preset,
    Size,
    check_room,
    config,
    data_bytes,
    describe,
    write_checkpoint,
)
from mlx_llama4.checkpoint.safetensors import open_checkpoint
from mlx_llama4.config import load_config
from mlx_llama4.demo.questions import CHECKPOINT
from mlx_llama4.errors import InputError
from mlx_llama4.tensors import model_tensors
from tests.benchmarks.program import benchmark

TINY = Size(64, 2, 4, 64, 128, head_dim=16, heads=4)


@pytest.mark.parametrize("sparse", [False, True])
def test_sources_are_whole_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparse: bool
) -> None:
    monkeypatch.setattr("benchmarks.harness.source.SHARD_BYTES", 100_000)
    folder = write_checkpoint(replace(TINY, sparse=sparse), tmp_path / "source")
    read = load_config(folder)
    assert [layer.feed_forward for layer in read.text.layers] == ["moe", "moe"]
    found = open_checkpoint(folder).tensors
    experts = "language_model.model.layers.1.feed_forward.experts"
    assert found[f"{experts}.gate_up_proj"].shape == (4, 64, 128)
    assert found[f"{experts}.down_proj"].shape == (4, 64, 64)
    assert len(list(folder.glob("*.safetensors"))) > 1
    # Other readers agree with ours, and gate and up are one tensor less a layer.
    arrays: dict[str, mx.array] = {}
    for file in folder.glob("*.safetensors"):
        arrays |= mx.load(str(file))
    assert arrays.keys() == found.keys()
    assert len(arrays) == len(model_tensors(read)) - 2
    values = np.array(arrays["language_model.model.embed_tokens.weight"].astype(mx.float32))
    assert values.std() == pytest.approx(0 if sparse else 0.02, rel=0.05)
    norm = np.array(arrays["language_model.model.norm.weight"].astype(mx.float32))
    assert norm.mean() == pytest.approx(0 if sparse else 1, abs=0.05)


def test_presets_are_as_large_as_they_say(tmp_path: Path) -> None:
    small, vocabulary, maverick_layer = Preset
    assert 250e6 < data_bytes(small) < 260e6
    assert describe(small).startswith("small: random bf16, 16 experts in each of 4 layers")
    assert data_bytes(vocabulary) >= 2e9
    assert describe(vocabulary).endswith(
        "64 experts in each of 8 layers, vocabulary of 202,048 tokens"
    )
    # Experts of 32.2 GB, and twice a vocabulary of 2.07 GB.
    assert 36e9 < data_bytes(maverick_layer) < 37e9
    assert "zeros in a sparse file, 128 experts in one layer" in describe(maverick_layer)
    with pytest.raises(InputError, match="are needed; set TMPDIR"):
        check_room(tmp_path, 10**18, source_is_free=True)


def test_config_is_spelled_as_the_releases_do() -> None:
    """Both peers fail on transformers 5's rope_parameters."""
    text = config(TINY)["text_config"]
    assert "rope_parameters" not in text and text["rope_theta"] > 0


def test_convert_from_end_to_end(tmp_path: Path) -> None:
    """The demo's own checkpoint, ours alone, one round."""
    out = tmp_path / "a.json"
    start = time.perf_counter()
    result = benchmark(
        "convert", "--source", CHECKPOINT, "--only", OURS, "--rounds", 1, "--json", out
    )
    assert result.returncode == 0, result.stderr
    (figures,) = json.loads(out.read_text())["engines"][OURS]["rounds"]
    assert 0 < figures["seconds"] <= figures["on_disk_seconds"] < time.perf_counter() - start
    assert 10**6 < figures["output_bytes"] < 6 * 10**6
    assert figures["peak_resident_bytes"] > figures["anonymous_above_idle_bytes"] > 0
    assert [line.split()[0] for line in result.stdout.split("\n\n")[1].splitlines()] == [
        *("one", "wall", "wall,", "CPU", "peak", "peak", "output")
    ]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--source", CHECKPOINT, "--preset", "small"], "--source and --preset exclude each other"),
        (["--source", "/no/such", "--only", OURS], "/no/such has no *.safetensors"),
        (["--only", "nobody"], "--only nobody: no such engine"),
        (["--json", "/no/such/a.json"], "/no/such is not a folder"),
    ],
)
def test_bad_options_end_in_one_line(arguments: list[object], words: str) -> None:
    result = benchmark("convert", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and words in line


def test_what_fails_inside_ours_is_said(tmp_path: Path) -> None:
    """A checkpoint whose config.json is missing."""
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    result = benchmark("convert", "--source", tmp_path, "--only", OURS, "--rounds", 1)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: ours: exit code 2: error: {tmp_path} has no config.json")


def test_a_peer_that_is_not_there_is_left_out() -> None:
    absent = ("--only", "mlx-vlm", "--python", "mlx-vlm=/no/such/python")
    result = benchmark("convert", "--source", CHECKPOINT, *absent)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "mlx-vlm is left out (cannot start /no/such/python: No such file or directory); "
        "--python mlx-vlm=PATH names another Python",
        "error: no engine is left to run",
    ]
