"""Tiny models with their experts on the disk."""

from pathlib import Path

import mlx.core as mx

from mlx_llama4.checkpoint.safetensors import open_checkpoint
from mlx_llama4.config import load_config
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.offload.budget import ExpertStreaming, LayerExperts
from mlx_llama4.offload.expert_store import expert_tensors, layer_experts
from mlx_llama4.opening import load_model
from mlx_llama4.quantization import Quantization
from tests import tiny
from tests.golden.cases import MODELS

# Of the experts: what the tests ask of a budget.
ONE, ONE_A_LAYER, SOME, HALF, ALL = "one", "one a layer", "some", "half", "all"


def folder(root: Path, name: str, packing: Quantization | None, dtype: str = "bfloat16") -> Path:
    """A golden model, converted."""
    case = MODELS[name]
    source = tiny.write_checkpoint(root / "source", case.config, case.weights(), "BF16")
    convert(source, root / "mlx", Recipe(dtype, packing))
    return root / "mlx"


def needs(model: Path) -> list[LayerExperts]:
    """Of each MoE layer, as it is in memory on the CPU."""
    tensors = expert_tensors(open_checkpoint(model), load_config(model), "F32")
    return [layer_experts(one) for one in tensors.values()]


def budget(model: Path, name: str) -> int:
    """Bytes."""
    layers = needs(model)
    every = sum(layer.count * layer.expert_bytes for layer in layers)
    one, one_a_layer = layers[0].expert_bytes, sum(layer.expert_bytes for layer in layers)
    return {
        ONE: one,
        ONE_A_LAYER: one_a_layer,
        SOME: one_a_layer * 23 // 10,
        HALF: every // 2,
        ALL: every * 2,
    }[name]


def stored_bytes(model: Path) -> int:
    """Of all experts, in the files."""
    tensors = expert_tensors(open_checkpoint(model), load_config(model), "F32")
    return sum(tensor.stored.nbytes for layer in tensors.values() for tensor in layer)


def load_streamed(model: Path, name: str, page_cache: bool = True) -> Llama4:
    return load_model(model, mx.float32, ExpertStreaming(budget(model, name), page_cache))
