"""Reads a prompt to its first token when asked.

sys.argv[2:]: model folder, tokens of the prompt, tokens of a step, ids to draw the prompt from.
An answer: [seconds, CPU seconds, peak bytes above the weights].
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np

FirstToken = Callable[[np.ndarray], None]  # ids int32 [L]; returns once the token is computed


def ours(folder: Path, step: int) -> FirstToken:
    from mlx_llama4.generation.prefill import prefill
    from mlx_llama4.opening import load_model
    from mlx_llama4.prompt.prompt import Prompt

    model = load_model(folder)

    def first_token(ids: np.ndarray) -> None:
        cache = model.make_cache()
        for layer in cache:
            layer.reserve(len(ids))
        mx.eval(mx.argmax(prefill(model, Prompt(ids), cache, span=step)))

    return first_token


def mlx_lm(folder: Path, step: int) -> FirstToken:
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)

    def first_token(ids: np.ndarray) -> None:
        list(generate_step(mx.array(ids), model, max_tokens=0, prefill_step_size=step))

    return first_token


def mlx_vlm(folder: Path, step: int) -> FirstToken:
    from mlx_vlm.generate import generate_step
    from mlx_vlm.utils import load_model

    model = load_model(folder)

    def first_token(ids: np.ndarray) -> None:
        options = {"max_tokens": 0, "temperature": 0, "prefill_step_size": step}
        list(generate_step(mx.array(ids)[None], model, None, None, **options))

    return first_token


engine, folder = sys.argv[1], Path(sys.argv[2])
tokens, step, num_ids = map(int, sys.argv[3:])
ids = np.random.default_rng(0).integers(0, num_ids, tokens).astype(np.int32)
first_token = {"ours": ours, "mlx-lm": mlx_lm, "mlx-vlm": mlx_vlm}[engine](folder, step)
first_token(ids[:step])  # first steps take longer
mx.clear_cache()
weights = mx.get_active_memory()


def answer(question: None) -> list[float]:
    mx.reset_peak_memory()
    start, cpu_start = time.perf_counter(), time.process_time()
    first_token(ids)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return [seconds, cpu_seconds, mx.get_peak_memory() - weights]
