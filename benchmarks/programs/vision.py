"""Computes a part of a vision tower when asked.

sys.argv[2:]: model folder, tiles. A question: [the part, whether GELU is exact or the engine's own,
a file for the output or null]. An answer: [seconds, CPU seconds, peak bytes above the weights].
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

# The tower, its first layer, and what makes its GELU exact or its own again.
Tower = tuple[Any, Callable[[mx.array], mx.array], Callable[[bool], None]]


def ours(folder: Path) -> Tower:
    from mlx_llama4.opening import load_model

    tower: Any = load_model(folder).vision_model
    return tower, tower.model.layers[0], lambda exact: None  # it knows no other than the exact one


def mlx_vlm(folder: Path) -> Tower:
    from mlx_vlm.utils import load_model

    tower = load_model(folder).vision_model
    mlps = [layer.mlp for layer in tower.model.layers] + [tower.vision_adapter.mlp]
    own = mlps[0].activation_fn

    def layer(x: mx.array) -> mx.array:
        return tower.model.layers[0](x, freqs_ci=tower.rotary_embedding(x))

    def choose_gelu(exact: bool) -> None:
        for mlp in mlps:
            mlp.activation_fn = nn.GELU() if exact else own

    return tower, layer, choose_gelu


engine, folder, tiles = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
tower, layer, choose_gelu = {"ours": ours, "mlx-vlm": mlx_vlm}[engine](folder)
mx.eval(tower.parameters())
vision = json.loads((folder / "config.json").read_text())["vision_config"]
side, width = vision["image_size"], vision["hidden_size"]
patches = (side // vision["patch_size"]) ** 2


def drawn(*shape: int) -> mx.array:
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    return mx.array(values).astype(tower.class_embedding.dtype)


pixels, hidden = drawn(tiles, 3, side, side), drawn(tiles, patches + 1, width)
mx.eval(pixels, hidden)
parts: dict[str, Callable[[], mx.array]] = {
    "unfold": lambda: tower.patch_embedding.unfold(pixels),
    "patches": lambda: tower.patch_embedding(pixels),
    "layer": lambda: layer(hidden),
    "tower": lambda: tower(pixels),
}


def answer(question: tuple[str, bool, str | None]) -> list[float]:
    part, exact, file = question
    choose_gelu(exact)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    start, cpu_start = time.perf_counter(), time.process_time()
    output = parts[part]()
    mx.eval(output)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    if file is not None:
        np.save(file, np.array(output.astype(mx.float32)))
    return [seconds, cpu_seconds, mx.get_peak_memory() - before]
