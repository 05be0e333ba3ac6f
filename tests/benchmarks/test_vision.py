"""`python -m benchmarks vision`: what it counts and compares, and all of it at tiny sizes."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.harness.engines import OURS
from benchmarks.vision import PEER, part_flops, same_outputs, tower_config
from mlx_llama4.config import parse_config
from mlx_llama4.errors import RunError
from mlx_llama4.planning.releases import release_json
from tests.benchmarks.program import benchmark

PARTS = ("layer", "tower", "own_tower")


def test_full_is_the_releases_tower() -> None:
    raw, released = tower_config(16, 34), release_json("scout")
    assert parse_config(raw).vision == parse_config(released).vision


def test_flops_of_the_releases() -> None:
    flops = part_flops(parse_config(tower_config(16, 34)).vision)
    linear = 2 * 577 * (4 * 1408**2 + 2 * 1408 * 5632)
    attention = 2 * 16 * 2 * 577 * 577 * 88
    assert flops["patches"] == 2 * 576 * 588 * 1408
    assert flops["layer"] == linear + attention
    adapter = 2 * 144 * (5632 * 4096 + 4096 * 4096)
    assert flops["tower"] == flops["patches"] + 34 * flops["layer"] + adapter


def _write(folder: Path, name: str, error: float) -> None:
    values = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    for part in PARTS:
        np.save(folder / f"{name}-{part}.npy", values * (1 + error))


def test_outputs_are_compared(tmp_path: Path) -> None:
    _write(tmp_path, OURS, 0)
    assert same_outputs(tmp_path, "float32") == "compared with nobody's"
    _write(tmp_path, PEER, 1e-6)
    assert "differ from ours by 1e-06" in same_outputs(tmp_path, "float32")
    _write(tmp_path, PEER, 0.01)
    assert "by 1e-02 with its own" in same_outputs(tmp_path, "bfloat16")
    with pytest.raises(RunError, match=r"outputs differ by 1e-02 of mlx-vlm's, 1e-05 is allowed"):
        same_outputs(tmp_path, "float32")


@pytest.mark.slow
def test_vision_from_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    size = ("--heads", 1, "--layers", 1, "--tiles", 2, "--rounds", 1)
    result = benchmark("vision", *size, "--only", OURS, "--json", out)
    assert result.returncode == 0, result.stderr
    assert "1 layers, width 88, 1 heads, MLP 352" in result.stdout
    (figures,) = json.loads(out.read_text())["engines"][OURS]["rounds"]
    assert min(figures.values()) > 0
    assert figures["own_tower_seconds"] == figures["tower_seconds"]
    # At least the patches, and no more than a layer's MLP, residual and scores many times.
    assert 2 * 576 * 588 * 4 < figures["tower_bytes"] < 10 * 2 * 577 * (352 + 88 + 577) * 4


def test_an_engine_without_a_tower() -> None:
    result = CliRunner().invoke(app, ["vision", "--only", "mlx-lm"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: --only mlx-lm: it has no vision tower\n"
