"""Recipes, and what is in the folders that they make."""

from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.quantization import Quantization

FOUR_BITS = Recipe("bfloat16", Quantization(32, 4))
PLAIN = Recipe("float32", None)


def arrays(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(mx.load(str(file)))
    return found


def expected_arrays(weights: dict[str, np.ndarray]) -> dict[str, mx.array]:
    """The model's tensors, put together the plain way."""
    result = {}
    for name, weight in weights.items():
        array = mx.array(weight)
        if name.endswith("gate_up_proj"):
            gate, up = mx.split(array, 2, axis=-1)
            result[name.replace("gate_up_proj", "gate_proj.weight")] = gate.swapaxes(1, 2)
            result[name.replace("gate_up_proj", "up_proj.weight")] = up.swapaxes(1, 2)
        elif name.endswith("experts.down_proj"):
            result[f"{name}.weight"] = array.swapaxes(1, 2)
        else:
            result[name] = array
    return result


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
