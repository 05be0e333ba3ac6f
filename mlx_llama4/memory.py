"""Computes the bytes of weights, caches and activations. Needs no MLX.

Tests compare what the planner says, what the benchmarks measure, and what is really used.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from mlx_llama4.config import Config, TextConfig, VisionConfig
from mlx_llama4.quantization import KVQuantization, Quantization
from mlx_llama4.tensors import Part, TensorSpec, model_tensors, quantized_tensors

# Scores that one attention step may materialise without a fused kernel, as on MLX's CPU backend.
# MLX works ahead, so several steps have scores at once.
SCORE_BYTES = 128 * 2**20
STEPS_IN_FLIGHT = 6
LEAST_QUERIES = 16  # in one step; fewer would take too long
CACHE_BLOCK_TOKENS = 256  # caches grow by whole blocks of this many tokens
PREFILL_SPAN = 2048  # tokens of a prompt that go through the layers together
PREFIX_BYTES = 2 * 10**9  # most that a conversation keeps of earlier prompts' beginnings
FEED_FORWARD_ROWS = 2048  # tokens of a longer span that go through an MLP together
SLICES_IN_FLIGHT = 3  # of FEED_FORWARD_ROWS tokens each, as MLX works ahead
TILES_PER_BATCH = 8  # tiles of a picture that go through the vision tower together


@dataclass(frozen=True)
class CacheBytes:
    """Keys and values of all layers for one row."""

    global_layers: int
    chunked_layers: int

    @property
    def total(self) -> int:
        return self.global_layers + self.chunked_layers


def weight_bytes(
    config: Config,
    quantization_of: Callable[[str, TensorSpec], Quantization | None],
    dtype_bytes: int,
) -> dict[Part, int]:
    """Bytes of each part of the model. dtype_bytes: of an element that is not packed."""
    parts: dict[Part, int] = {}
    for name, spec in model_tensors(config).items():
        nbytes = tensor_bytes(name, spec, quantization_of(name, spec), dtype_bytes)
        parts[spec.part] = parts.get(spec.part, 0) + nbytes
    return parts


def tensor_bytes(
    name: str, spec: TensorSpec, quantization: Quantization | None, dtype_bytes: int
) -> int:
    """Bytes of a weight with its scales and biases."""
    if quantization is None:
        return spec.size * dtype_bytes
    scale_bytes = dtype_bytes if quantization.mode == "affine" else 1
    return sum(
        math.prod(shape) * (4 if part == name else scale_bytes)
        for part, shape in quantized_tensors(name, spec.shape, quantization).items()
    )


def cache_bytes(
    text: TextConfig, tokens: int, dtype_bytes: int, quantization: KVQuantization | None = None
) -> CacheBytes:
    """Bytes of the caches of one row after `tokens` tokens.

    A global layer keeps every token, packed if `quantization` says so. A chunked layer keeps at
    most one chunk, however long the context. In the releases all global layers take 48 KB a token,
    all chunked ones at most 1.2 GB.
    """
    row = text.head_dim * dtype_bytes
    global_row = _global_row_bytes(text, tokens, dtype_bytes, quantization)
    rows = 2 * text.num_key_value_heads  # of one token in one layer
    global_layers = sum(kind.attention == "global" for kind in text.layers)
    chunked_layers = text.num_hidden_layers - global_layers
    capacity = -(-tokens // CACHE_BLOCK_TOKENS) * CACHE_BLOCK_TOKENS
    chunk = capacity if text.attention_chunk_size is None else text.attention_chunk_size
    return CacheBytes(
        global_layers=global_layers * capacity * rows * global_row,
        chunked_layers=chunked_layers * min(capacity, chunk) * rows * row,
    )


def _global_row_bytes(
    text: TextConfig, tokens: int, dtype_bytes: int, quantization: KVQuantization | None
) -> int:
    """One head's key or value of one token in a global layer, after `tokens` tokens."""
    if quantization is None or tokens <= quantization.after:
        return text.head_dim * dtype_bytes
    return quantization.row_bytes(text.head_dim, dtype_bytes)


def prompt_file_bytes(
    text: TextConfig,
    tokens: int,
    dtype_bytes: int,
    quantization: KVQuantization | None = None,
    *,
    small: bool = False,
    feature_tokens: int = 0,
) -> int:
    """Bytes of keys, values, ids and image features in a saved prompt cache.

    Global layers have all tokens, chunked layers those since the last border. `small` leaves out
    all keys and values from that border on. feature_tokens: slots of the pictures saved with it.
    The header and the conversation's text are not counted.
    """
    row = text.head_dim * dtype_bytes
    chunk = text.attention_chunk_size
    border = tokens // chunk * chunk if chunk is not None else 0
    held = border if small else tokens
    global_row = _global_row_bytes(text, tokens, dtype_bytes, quantization)
    global_layers = sum(kind.attention == "global" for kind in text.layers)
    chunked_layers = text.num_hidden_layers - global_layers
    rows = 2 * text.num_key_value_heads  # of one token in one layer
    keys_and_values = rows * (
        global_layers * held * global_row + chunked_layers * (held - border) * row
    )
    return keys_and_values + 4 * tokens + feature_tokens * text.hidden_size * dtype_bytes


def score_bytes(text: TextConfig, span: int, keys: int, dtype_bytes: int) -> int:
    """What one layer's attention of `span` tokens materialises without a fused kernel: float32
    scores of the queries of all steps in flight, and the keys laid out for the CPU.
    """
    queries = min(span, queries_at_once(text.num_attention_heads, keys))
    scores = 4 * text.num_attention_heads * keys * min(span, STEPS_IN_FLIGHT * queries)
    return scores + text.num_key_value_heads * text.head_dim * keys * dtype_bytes


def queries_at_once(heads: int, keys: int) -> int:
    """The most queries of one attention step over `keys` keys."""
    return max(SCORE_BYTES // (4 * heads * keys), LEAST_QUERIES)


def activation_bytes(text: TextConfig, span: int, dtype_bytes: int, streamed: bool = False) -> int:
    """Upper bound of what is in memory while `span` tokens pass through the layers. streamed: the
    routed experts are read from the disk.

    MLX works ahead and frees an array once its last reader is done, so more is alive than the
    arithmetic needs. The bound counts ten arrays of the hidden size (residual, norms, queries,
    keys, values, routed inputs before and after sorting, outputs) and, for each MLP that a token
    takes, four of the inner width (gate, up, activation, product). Measurements on the CPU backend
    stay within it. With streamed experts a longer span goes through its MLPs in slices, and up to
    twelve arrays of the hidden size were measured. Attention scores are not counted: fused kernels
    make none, and without them attention goes in steps.
    """
    inner = max(
        (1 + text.num_experts_per_tok) * text.intermediate_size
        if kind.feed_forward == "moe"
        else text.intermediate_size_mlp
        for kind in text.layers
    )
    rows, hidden = span, 10 * text.hidden_size
    if streamed and span > FEED_FORWARD_ROWS:
        rows, hidden = min(span, SLICES_IN_FLIGHT * FEED_FORWARD_ROWS), 12 * text.hidden_size
    return (span * hidden + rows * 4 * inner + text.vocab_size) * dtype_bytes


def dequantized_bytes(
    text: TextConfig, tokens: int, dtype_bytes: int, quantization: KVQuantization | None
) -> int:
    """One global layer's keys and values of `tokens` tokens, unpacked for a step of a prefill."""
    if quantization is None or tokens <= quantization.after:
        return 0
    return 2 * text.num_key_value_heads * text.head_dim * tokens * dtype_bytes


def vision_bytes(vision: VisionConfig, tiles: int, dtype_bytes: int) -> int:
    """Upper bound of what is in memory while a picture of `tiles` tiles passes the vision tower.

    As `activation_bytes`, with one more array of the hidden size, which a busy machine showed once.
    It also counts the pixels twice, since they stay while patches are made of them, and three
    arrays of scores, since the softmax makes one from another. Fused attention would keep no
    scores, but the CPU has none, and on Metal, where heads are padded for it, no Mac has been
    measured yet.
    """
    batch = min(tiles, TILES_PER_BATCH)
    positions = vision.patches_per_side**2 + 1
    width = 11 * vision.hidden_size + 4 * vision.intermediate_size
    scores = 3 * vision.num_attention_heads * positions**2
    pixels = 2 * vision.num_channels * vision.image_size**2
    return batch * (positions * width + scores + pixels) * dtype_bytes


def feature_bytes(config: Config, tiles: int, dtype_bytes: int) -> int:
    """Image features of `tiles` tiles, which are kept while a prompt is read."""
    if config.vision is None:
        return 0
    return tiles * config.vision.tokens_per_tile * config.text.hidden_size * dtype_bytes
