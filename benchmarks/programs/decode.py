"""Writes one long answer, a burst of tokens each time it is asked.

sys.argv[2:]: model folder, tokens of the prompt, tokens of the answer, ids to draw the prompt from.
A question: how many tokens. An answer: [seconds, CPU seconds, bytes of weights, peak bytes above
them, the tokens].
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

# The tokens of a greedy answer, as they come, and the stream that computes them.
Generating = tuple[Iterator[int], Any]


def ours(folder: Path, ids: np.ndarray, longest: int) -> Generating:
    """Makes text of the tokens too."""
    from mlx_llama4.generation.generate import stream_generate
    from mlx_llama4.generation.settings import GenerationSettings
    from mlx_llama4.opening import load
    from mlx_llama4.prompt.prompt import Prompt

    model, processor = load(folder)
    processor.end_tokens = frozenset()
    settings = GenerationSettings(max_tokens=longest, temperature=0.0)
    steps = stream_generate(model, processor, Prompt(ids), settings)
    return (step.token for step in steps), mx.default_stream(mx.default_device())


def mlx_lm(folder: Path, ids: np.ndarray, longest: int) -> Generating:
    from mlx_lm.generate import generate_step, generation_stream
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    steps = generate_step(mx.array(ids), model, max_tokens=longest)
    return (int(token) for token, _ in steps), generation_stream


def mlx_vlm(folder: Path, ids: np.ndarray, longest: int) -> Generating:
    from mlx_vlm.generate import generate_step
    from mlx_vlm.generate.common import generation_stream
    from mlx_vlm.utils import load_model

    model = load_model(folder)
    given = mx.array(ids)[None]
    steps = generate_step(given, model, None, None, max_tokens=longest, temperature=0)
    return (int(token) for token, _ in steps), generation_stream


engine, folder = sys.argv[1], Path(sys.argv[2])
prompt, longest, num_ids = map(int, sys.argv[3:])
ids = np.random.default_rng(0).integers(0, num_ids, prompt).astype(np.int32)
start_generating = {"ours": ours, "mlx-lm": mlx_lm, "mlx-vlm": mlx_vlm}[engine]
# Generators: the prompt is read when the first token is asked for.
tokens, stream = start_generating(folder, ids, longest)
mx.clear_cache()
weights = mx.get_active_memory()


def answer(count: int) -> list[Any]:
    mx.reset_peak_memory()
    start, cpu_start = time.perf_counter(), time.process_time()
    found = [next(tokens) for _ in range(count)]
    # All engines compute one token ahead. Wait for it, or it would be free here and would be
    # computed in the next engine's turn.
    mx.synchronize(stream)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return [seconds, cpu_seconds, weights, mx.get_peak_memory() - weights, found]
