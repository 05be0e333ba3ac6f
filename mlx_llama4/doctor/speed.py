"""Measure quickly how fast memory is, and how fast layers of Scout's shapes prefill and decode.

The layers have random 4-bit weights.
"""

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_llama4.config import Config, parse_config
from mlx_llama4.doctor.models import PACKING, is_packed
from mlx_llama4.generation.generate import Statistics, Wordless, stream_generate
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.opening import fill
from mlx_llama4.planning.releases import release_json
from mlx_llama4.prompt.prompt import Prompt
from mlx_llama4.tensors import TensorSpec, model_tensors, quantized_tensors

ARRAY_BYTES = 512 * 10**6  # more than any processor's cache
BEST_OF = 3
WARMING_TOKENS = 3
LAYERS, EXPERTS, VOCABULARY = 4, 2, 2048  # each token takes one expert
CODES_MEAN, CODES_VARIANCE = 7.5, 21.25  # of 4-bit values, all equally likely


@dataclass(frozen=True)
class Work:
    """How much to compute."""

    scale: int  # Scout's widths are divided by this
    prompt_tokens: int
    new_tokens: int


# With Scout's own widths these layers take 1 GB. MLX's CPU backend is slow with packed experts.
WORK_OF_GPU = Work(scale=1, prompt_tokens=512, new_tokens=64)
WORK_OF_CPU = Work(scale=8, prompt_tokens=64, new_tokens=16)


@dataclass(frozen=True)
class DecodeSpeed:
    """How fast the layers of `work` ran."""

    work: Work
    layers: int
    dtype: str
    token_bytes: int  # of weights that a token reads
    prefill_tokens_per_second: float
    decode_tokens_per_second: float

    @property
    def bytes_per_second(self) -> float:
        return self.token_bytes * self.decode_tokens_per_second


def measure_bandwidth(nbytes: int = ARRAY_BYTES) -> float:
    """Measure how many bytes of memory can be read a second; the best of a few runs.

    MLX's CPU backend reads in one thread, so there NumPy reads too, in one thread per core.
    """
    array = mx.ones(nbytes // 4)
    mx.eval(array)
    seconds = [_seconds(lambda: mx.eval(mx.max(array))) for _ in range(BEST_OF)]
    if mx.default_device() == mx.cpu:
        parts = np.array_split(np.asarray(array), os.cpu_count() or 1)
        with ThreadPoolExecutor(len(parts)) as threads:
            for _ in range(BEST_OF):
                seconds.append(_seconds(lambda: list(threads.map(np.max, parts))))
    return nbytes / min(seconds)


def measure_decode(work: Work | None = None) -> DecodeSpeed:
    """Measure prefill and decoding. work: by default, what the device does in some seconds."""
    is_cpu = mx.default_device() == mx.cpu
    work = work or (WORK_OF_CPU if is_cpu else WORK_OF_GPU)
    config = scaled_scout(work.scale)
    dtype = "float32" if is_cpu else "bfloat16"
    weights = random_weights(config, getattr(mx, dtype))
    token_bytes = _token_bytes(config, weights)
    model = Llama4(config)
    packed = {name.removesuffix(".scales") for name, _ in weights if name.endswith(".scales")}
    fill(model, weights, lambda path: PACKING if path in packed else None)
    _run(model, work.prompt_tokens, WARMING_TOKENS)  # weights are drawn, kernels built
    measured = _run(model, work.prompt_tokens, work.new_tokens)
    prefill, decode = measured.prefill_tokens_per_second, measured.decode_tokens_per_second
    if prefill is None or decode is None:
        raise ValueError("no tokens came")
    return DecodeSpeed(
        work,
        config.text.num_hidden_layers,
        dtype,
        token_bytes,
        prefill,
        decode,
    )


def scaled_scout(scale: int) -> Config:
    """Scout's text model with narrower layers; three of four are chunked, as in the original."""
    raw = release_json("scout")
    text = raw["text_config"]
    for key in ("hidden_size", "intermediate_size", "intermediate_size_mlp"):
        text[key] //= scale
    text |= {
        "num_attention_heads": 40 // scale,
        "num_key_value_heads": 8 // scale,
        "num_hidden_layers": LAYERS,
        "num_local_experts": EXPERTS,
        "vocab_size": VOCABULARY,
    }
    return parse_config(text | {"torch_dtype": "bfloat16"})


def random_weights(config: Config, dtype: mx.Dtype) -> list[tuple[str, mx.array]]:
    """Draw weights, lazily, by their names in an MLX folder.

    Their variance is 1 / inputs, so that activations keep their size; norms are ones.
    """
    arrays: list[tuple[str, mx.array]] = []
    for name, spec in model_tensors(config).items():
        if is_packed(name):
            arrays += _random_packed(name, spec, dtype)
        elif len(spec.shape) == 1:
            arrays.append((name, mx.ones(spec.shape, dtype)))
        else:
            normal = mx.random.normal(spec.shape) / math.sqrt(spec.shape[-1])
            arrays.append((name, normal.astype(dtype)))
    return arrays


def _random_packed(name: str, spec: TensorSpec, dtype: mx.Dtype) -> list[tuple[str, mx.array]]:
    scale = 1 / math.sqrt(CODES_VARIANCE * spec.shape[-1])
    codes, scales, biases = quantized_tensors(name, spec.shape, PACKING).items()
    *outer, words = codes[1]
    halves = mx.random.randint(0, 2**16, (*outer, 2 * words), mx.uint16)
    return [
        (codes[0], halves.view(mx.uint32)),
        (scales[0], mx.full(scales[1], scale, dtype)),
        (biases[0], mx.full(biases[1], -CODES_MEAN * scale, dtype)),
    ]


def _token_bytes(config: Config, weights: list[tuple[str, mx.array]]) -> int:
    """Bytes of weights that one token reads: all but the embedding and the experts not chosen."""
    text, total = config.text, 0
    for name, array in weights:
        if ".experts." in name:
            total += array.nbytes * text.num_experts_per_tok // text.num_local_experts
        elif "embed_tokens" not in name:
            total += array.nbytes
    return total


def _run(model: Llama4, prompt_tokens: int, new_tokens: int) -> Statistics:
    ids = np.arange(prompt_tokens, dtype=np.int32) % VOCABULARY
    statistics = Statistics()
    settings = GenerationSettings(max_tokens=new_tokens)
    for _ in stream_generate(model, Wordless(), Prompt(ids), settings, statistics=statistics):
        pass
    return statistics


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
