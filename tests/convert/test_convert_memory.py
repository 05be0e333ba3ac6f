"""What the plan says of memory, beside what the process takes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.process import run_measured
from mlx_llama4.checkpoint.open import open_source
from mlx_llama4.convert.plan import OVERHEAD_BYTES, make_plan
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.quantization import Quantization
from tests import tiny

WORK = """
import sys
from pathlib import Path
import mlx.core as mx
mx.set_default_device(mx.cpu)
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.quantization import Quantization
if len(sys.argv) > 1:
    recipe = Recipe("bfloat16", Quantization(64, 4), search=sys.argv[3] == "search")
    convert(Path(sys.argv[1]), Path(sys.argv[2]), recipe)
"""


@pytest.fixture(scope="module")
def many_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 experts of 6 MB in one layer; written without drawing 150 million numbers."""
    sizes = {"num_local_experts": 48, "intermediate_size": 1024, "hidden_size": 1024}
    config = tiny.config("scout", num_hidden_layers=1, **sizes) | {"vision_config": None}
    text = config["text_config"]
    shapes = {f"language_model.{n}": shape for n, shape in tiny.text_shapes(text).items()}
    noise = np.random.RandomState(0).standard_normal(2**20).astype(np.float32) * 0.02
    weights = {name: np.resize(noise, shape) for name, shape in shapes.items()}
    folder = tmp_path_factory.mktemp("experts")
    tiny.write_checkpoint(folder, config, weights, "BF16")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("search", ["plain", "search"])
def test_peak_is_within_the_plan(many_experts: Path, tmp_path: Path, search: str) -> None:
    """Anonymous memory above that of a process that has imported the same and does nothing."""
    command = [sys.executable, "-c", WORK]
    idle = run_measured(command, tmp_path).peak_anonymous_bytes
    working = run_measured([*command, str(many_experts), str(tmp_path / "out"), search], tmp_path)
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["bytes"] > 2**26
    recipe = Recipe("bfloat16", Quantization(64, 4), search=search == "search")
    planned = make_plan(open_source(many_experts), recipe).peak_bytes
    taken = working.peak_anonymous_bytes - idle
    slices = planned - OVERHEAD_BYTES
    assert slices / 4 < taken < planned, (taken, planned)
