"""Streaming keeps its promise of memory, where all experts in memory cannot live."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness.process import run_measured
from benchmarks.harness.random_model import (
    packing_of,
    recipe_of,
    scaled_release,
    write_random_model,
)
from mlx_llama4.checkpoint.safetensors import open_checkpoint
from mlx_llama4.errors import RunError
from mlx_llama4.offload.expert_store import is_routed_expert

BUDGET = 1_040_000_000
# Of addresses, of which a process takes more than it has memory: stacks of threads, arenas.
LIMIT = 2_600_000_000
# A prompt of 64 tokens or more takes experts one by one, a token after it all at once: both are
# here.
GENERATE = """
import resource, sys
budget, limit = map(int, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from pathlib import Path
import mlx.core as mx, numpy as np
mx.set_default_device(mx.cpu)
from mlx_llama4.generation.generate import Wordless, stream_generate
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.opening import load_model
from mlx_llama4.offload.budget import ExpertStreaming
from mlx_llama4.prompt.prompt import Prompt
streaming = ExpertStreaming(budget, page_cache=False) if budget else None
model = load_model(Path(sys.argv[1]), streaming=streaming)
for layer in model.expert_cache.layers.values() if streaming else ():
    layer.hold(range(layer.capacity))  # all memory that it may ever take
ids = np.random.default_rng(0).integers(0, 2000, 80).astype(np.int32)
settings = GenerationSettings(max_tokens=4)
assert len(list(stream_generate(model, Wordless(), Prompt(ids), settings))) == 4
"""


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Path]:
    """160 experts of 4.9 MB in each of four layers."""
    config = scaled_release("scout", 4, 4, experts=160, vocabulary=65_536)
    packing = packing_of(4)
    write_random_model(tmp_path / "model", config, recipe_of(packing, packing, "float32"))
    yield tmp_path / "model"
    shutil.rmtree(tmp_path / "model")  # pytest would keep it for a while


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce the limit")
def test_peak_is_within_weights_and_budget(model: Path, tmp_path: Path) -> None:
    """By a tenth, Python and libraries included, and with three times the budget on the disk."""
    tensors = open_checkpoint(model).tensors
    experts = sum(one.nbytes for name, one in tensors.items() if is_routed_expert(name))
    rest = sum(one.nbytes for one in tensors.values()) - experts
    assert experts >= 3 * 10**9 and experts >= 3 * BUDGET
    command = [sys.executable, "-c", GENERATE, str(model)]
    streamed = run_measured([*command, str(BUDGET), str(LIMIT)], tmp_path)
    assert rest + 0.9 * BUDGET < streamed.peak_resident_bytes <= 1.1 * (rest + BUDGET)
    assert rest + experts > LIMIT
    with pytest.raises(RunError):
        run_measured([*command, "0", str(LIMIT)], tmp_path)
