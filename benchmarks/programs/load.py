"""Loads a model folder when asked. sys.argv[2]: the folder.

An answer: [seconds, CPU seconds, bytes of weights, peak bytes].
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx


def loader(engine: str) -> Callable[[Path], Any]:
    """The engine's own function from a folder to a model, or to a tuple that begins with one."""
    if engine == "ours":
        from mlx_llama4.opening import load_model

        return load_model
    if engine == "mlx-lm":
        from mlx_lm.utils import load_model as load_lm

        return load_lm
    from mlx_vlm.utils import load_model as load_vlm

    return load_vlm


load = loader(sys.argv[1])
folder = Path(sys.argv[2])
loaded: list[Any] = []  # kept, so that a folder's weights stay in memory


def answer(question: None) -> list[float]:
    start, cpu_start = time.perf_counter(), time.process_time()
    found = load(folder)
    model = found[0] if isinstance(found, tuple) else found
    loaded.append(model)
    mx.eval(model.parameters())  # nothing is left to do unless the engine put it off
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return [seconds, cpu_seconds, mx.get_active_memory(), mx.get_peak_memory()]
