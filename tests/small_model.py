"""A model of four layers with chunks of eight tokens, for tests that cross many borders."""

import shutil
import tempfile
from functools import cache as memoized
from pathlib import Path

import mlx.core as mx

from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.opening import load_model
from tests import tiny

CHUNK = 8
# Without experts, for comparing packed keys and values with plain ones: the least of differences
# sends a token to another expert now and then, and that is no small difference any more.
DENSE = "dense"
# Largest difference that 8 bits make to logits of a standard deviation of 2.
PACKED_ERROR = 0.05


@memoized
def model_of(preset: str) -> Llama4:
    """Four layers: three chunked and a global one."""
    overrides = {"attention_chunk_size": CHUNK, "num_hidden_layers": 4, "head_dim": 32}
    if preset == DENSE:
        preset, overrides["moe_layers"] = "scout", []
    config = tiny.config(preset, **overrides)
    folder = Path(tempfile.mkdtemp())
    try:
        source = tiny.write_checkpoint(folder / "source", config, tiny.tensors(config))
        convert(source, folder / "mlx", Recipe("float32", None))
        return load_model(folder / "mlx", mx.float32)
    finally:
        shutil.rmtree(folder)
