"""What the routers chose, step by step, in a file: for measuring which experts are worth keeping.

A safetensors file: `layers` and `counts`, int32 [steps], of each step of a MoE layer its number and
how many experts its tokens took; `experts`, int32, all of these in their order. Every pass through
the model gives a step a layer.
"""

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_llama4.cache.safetensors_file import check_place, write_safetensors
from mlx_llama4.errors import CheckpointError, OutputError
from mlx_llama4.model.llama4 import Llama4

FORMAT = "mlx-llama4 routing trace 1"


class _Recorded:
    """Experts whose calls are noted. No module: it has no weights of its own."""

    def __init__(self, experts: object, layer: int, steps: list[tuple[int, mx.array]]):
        self._experts = experts
        self._layer = layer
        self._steps = steps

    def __call__(self, x: mx.array, experts: mx.array, meanwhile: mx.array) -> mx.array:
        # Unevaluated, it would hold on to all that it is computed from.
        mx.async_eval(experts)
        self._steps.append((self._layer, experts))
        return self._experts(x, experts, meanwhile)


class RoutingTrace:
    """Records from when it is made until it is written."""

    def __init__(self, model: Llama4):
        self._steps: list[tuple[int, mx.array]] = []
        for number, layer in enumerate(model.language_model.model.layers):
            if model.config.text.layers[number].feed_forward == "moe":
                moe = layer.feed_forward
                moe.experts = _Recorded(moe.experts, number, self._steps)

    def write(self, path: Path) -> None:
        """Raises OutputError or RunError."""
        chosen = [np.array(experts, np.int32) for _, experts in self._steps]
        arrays = {
            "layers": np.array([layer for layer, _ in self._steps], np.int32),
            "counts": np.array([len(experts) for experts in chosen], np.int32),
            "experts": np.concatenate([np.zeros(0, np.int32), *chosen]),
        }
        write_safetensors(
            path, {name: mx.array(array) for name, array in arrays.items()}, {"format": FORMAT}
        )


def check_trace_place(path: Path) -> None:
    """Raises OutputError if no trace can be written there, or something else would be lost."""
    check_place(path, 0)
    if path.exists():
        raise OutputError(f"{path} is there already; give the trace another name")


def read_trace(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Of each step the layer and the experts, int [tokens · k]. Raises CheckpointError."""
    try:
        arrays, metadata = mx.load(str(path), format="safetensors", return_metadata=True)
    except (RuntimeError, ValueError):
        raise CheckpointError(f"{path} is no routing trace, or damaged") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no routing trace; --trace writes them")
    layers, counts, experts = (np.array(arrays[name]) for name in ("layers", "counts", "experts"))
    for layer, chosen in zip(layers, np.split(experts, np.cumsum(counts)[:-1]), strict=True):
        yield int(layer), chosen
