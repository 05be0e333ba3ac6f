"""What the machine allows, whatever the program.

Decoding reads each weight that a token uses once, so memory's speed limits it. A prompt's tokens
are multiplied by the weights, so the rate of matmuls limits prefill. Both are measured here with
MLX's own operations and nothing else, and subjects print their share of them.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness.presets import BITS, GROUP_SIZE, unpacked_dtype
from mlx_llama4.config import LayerKind, TextConfig, VisionConfig, load_config
from mlx_llama4.tensors import model_tensors
from mlx_llama4.units import human_bytes

if TYPE_CHECKING:
    import mlx.core as mx

# Read to measure memory's speed: larger than any processor's cache.
ARRAY_BYTES = 512 * 2**20
BEST_OF = 5
MATMUL_ROWS = 512  # tokens of a step of a prompt
# Parts that a token hardly reads: one row of the embedding, and nothing that serves pictures.
NOT_READ = ("embedding", "vision tower", "projector")


@dataclass(frozen=True)
class Limits:
    """Rates that no program can exceed here."""

    bytes_per_second: float  # reading memory
    matmul: float  # FLOP/s of a dense product of many rows, in the dtype of activations
    packed_matmul: float  # the same with weights of 4 bits
    packed_vector: float  # bytes a second of such weights, scales included, times one row

    def lines(self) -> dict[str, str]:
        """Label → text, for a report's setup."""
        return {
            "memory": f"read at {human_bytes(self.bytes_per_second)} a second",
            "matmul": f"{show_rate(self.matmul)} dense, {show_rate(self.packed_matmul)} with "
            f"weights of {BITS} bits",
            "one row": f"{human_bytes(self.packed_vector)} of weights in {BITS} bits a second",
        }


def measure_limits(text: TextConfig) -> Limits:
    """Measure with the shapes of an MLP. The best of BEST_OF runs counts."""
    import mlx.core as mx

    dtype = getattr(mx, unpacked_dtype())
    inputs, outputs = text.hidden_size, text.intermediate_size
    rows = mx.random.normal((MATMUL_ROWS, inputs)).astype(dtype)
    packed = mx.quantize(mx.random.normal((outputs, inputs)).astype(dtype), GROUP_SIZE, BITS)
    mx.eval(rows, packed)
    product = _seconds(lambda: mx.eval(_product(rows, packed)))
    return Limits(
        bytes_per_second=measure_bandwidth(),
        matmul=measure_matmul(text),
        packed_matmul=2 * MATMUL_ROWS * inputs * outputs / product,
        packed_vector=_packed_vector(packed),
    )


def measure_matmul(tower: TextConfig | VisionConfig) -> float:
    """FLOP/s of a dense product of many rows with a weight of an MLP."""
    import mlx.core as mx

    dtype = getattr(mx, unpacked_dtype())
    inputs, outputs = tower.hidden_size, tower.intermediate_size
    weight = mx.random.normal((outputs, inputs)).astype(dtype)
    rows = mx.random.normal((MATMUL_ROWS, inputs)).astype(dtype)
    columns = mx.contiguous(rows.T)
    mx.eval(weight, rows, columns)
    # The BLAS of MLX's Linux wheels likes one order more than the other.
    seconds = min(
        _seconds(lambda: mx.eval(rows @ weight.T)), _seconds(lambda: mx.eval(weight @ columns))
    )
    return 2 * MATMUL_ROWS * inputs * outputs / seconds


def measure_bandwidth() -> float:
    """Bytes that can be read a second.

    MLX's CPU backend reads in one thread, so there NumPy reads as well, in a thread per core.
    """
    import mlx.core as mx

    array = mx.ones(ARRAY_BYTES // 4)
    mx.eval(array)
    seconds = _seconds(lambda: mx.eval(mx.max(array)))
    if mx.default_device() == mx.cpu:
        parts = np.array_split(np.asarray(array), os.cpu_count() or 1)
        with ThreadPoolExecutor(len(parts)) as threads:
            seconds = min(seconds, _seconds(lambda: list(threads.map(np.max, parts))))
    return ARRAY_BYTES / seconds


def _packed_vector(packed: Sequence["mx.array"]) -> float:
    """Bytes a second of a packed matrix times one row.

    There are so many copies that they must come from memory, as the weights of all layers do.
    """
    import mlx.core as mx

    nbytes = sum(part.nbytes for part in packed)
    count = max(ARRAY_BYTES // 8 // nbytes, 1)
    copies = [[mx.contiguous(part + 0) for part in packed] for _ in range(count)]
    codes, scales, _ = packed
    row = mx.ones((1, codes.shape[1] * 32 // BITS), scales.dtype)
    mx.eval(row, copies)

    def multiply() -> None:
        mx.eval([_product(row, copy) for copy in copies])

    return count * nbytes / _seconds(multiply)


def _product(rows: "mx.array", packed: Sequence["mx.array"]) -> "mx.array":
    """rows [rows, inputs] × the packed matrix [outputs, inputs] → [rows, outputs]"""
    import mlx.core as mx

    codes, scales, biases = packed
    return mx.quantized_matmul(
        rows, codes, scales, biases, transpose=True, group_size=GROUP_SIZE, bits=BITS
    )


def decode_bytes(folder: Path, tokens: int) -> int:
    """Bytes of weights and of caches that the token after `tokens` others reads.

    folder: an MLX model. In a MoE layer, the token reads the experts that it is given to and what
    all tokens share.
    """
    from mlx_llama4.checkpoint.safetensors import open_checkpoint

    config = load_config(folder)
    text, specs = config.text, model_tensors(config)
    weights = 0
    for name, stored in open_checkpoint(folder).tensors.items():
        part = specs[_weight_of(name)].part
        if part == "routed experts":
            weights += stored.nbytes * text.num_experts_per_tok // text.num_local_experts
        elif part not in NOT_READ:
            weights += stored.nbytes
    element = 4 if unpacked_dtype() == "float32" else 2
    row = 2 * text.num_key_value_heads * text.head_dim * element  # a key and a value
    return weights + row * sum(_keys(text, kind, tokens) for kind in text.layers)


def prefill_flops(text: TextConfig, tokens: int) -> int:
    """FLOPs from a prompt to its first token: matmuls and causal attention, 2 for each product.

    In the last layer, tokens before the last one need keys and values only.
    """
    hidden, queries = text.hidden_size, text.num_attention_heads * text.head_dim
    keys_and_values = 4 * hidden * text.num_key_value_heads * text.head_dim
    flops = 0
    for index, kind in enumerate(text.layers):
        last = index == text.num_hidden_layers - 1
        places = range(tokens - 1, tokens) if last else range(tokens)
        seen = sum(_keys(text, kind, place) + 1 for place in places)
        flops += tokens * keys_and_values + 4 * queries * seen
        flops += len(places) * (4 * hidden * queries + _feed_forward_flops(text, kind))
    return flops + 2 * hidden * text.vocab_size


def _feed_forward_flops(text: TextConfig, kind: LayerKind) -> int:
    """FLOPs of a token's feed-forward in a layer of this kind."""
    if kind.feed_forward == "dense":
        return 6 * text.hidden_size * text.intermediate_size_mlp
    experts = 6 * text.hidden_size * text.intermediate_size * (1 + text.num_experts_per_tok)
    return experts + 2 * text.hidden_size * text.num_local_experts


def _keys(text: TextConfig, kind: LayerKind, tokens: int) -> int:
    """How many keys the token after `tokens` others sees in a layer of this kind."""
    if kind.attention == "global" or text.attention_chunk_size is None:
        return tokens
    return tokens % text.attention_chunk_size


def _weight_of(name: str) -> str:
    for part in (".scales", ".biases"):
        if name.endswith(part):
            return name.removesuffix(part) + ".weight"
    return name


def _seconds(run: Callable[[], object]) -> float:
    found = []
    for _ in range(BEST_OF):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def show_rate(flops: float) -> str:
    return f"{flops / 1e9:.3g} GFLOP/s" if flops < 1e12 else f"{flops / 1e12:.3g} TFLOP/s"
