"""Chunked layers far into a prompt: the same content gives the same attention at any chunk."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.cache.kv import KVCache
from mlx_llama4.config import TextConfig, parse_config
from mlx_llama4.model.attention import Attention
from mlx_llama4.model.llama4 import make_layer_cache
from tests import tiny
from tests.proofs import scaled

CHUNK = 8192
# Multiples of it; the releases go up to 10,485,760.
OFFSETS = (0, 131_072, 1_048_576, 9_994_240)
OFFSETS += tuple(range(CHUNK, 10_485_760, CHUNK))[: scaled(0, long=1279)]
TOKENS = 48
WITHIN = 1e-5  # relative to the largest output


def text_config(preset: str) -> TextConfig:
    """Heads as wide as the releases' and their chunk, and little else."""
    sizes = {"head_dim": 128, "num_attention_heads": 5, "num_key_value_heads": 1}
    return parse_config(tiny.config(preset, **sizes, attention_chunk_size=CHUNK)).text


def make_attention(text: TextConfig, layer: int) -> Attention:
    attention = Attention(text, text.layers[layer])
    random = np.random.RandomState(7)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        projection = getattr(attention, name)
        weights = random.normal(0, 0.1, projection.weight.shape)
        projection.weight = mx.array(weights, mx.float32)
    return attention


def outputs(attention: Attention, cache: KVCache, splits: tuple[int, ...]) -> np.ndarray:
    """[TOKENS, hidden] of fixed content that arrives in parts."""
    hidden = attention.q_proj.weight.shape[1]
    x = mx.array(np.random.RandomState(8).normal(0, 1, (1, TOKENS, hidden)), mx.float32)
    parts = [attention(part, cache, 16) for part in mx.split(x, splits, axis=1)]
    return np.array(mx.concatenate(parts, axis=1))[0]


def drift(at: Callable[[int], np.ndarray]) -> dict[int, float]:
    """Offset → largest difference from offset 0, relative."""
    first = at(0)
    return {offset: np.abs(at(offset) - first).max() / np.abs(first).max() for offset in OFFSETS}


def assert_same_everywhere(at: Callable[[int], np.ndarray]) -> None:
    largest = max(drift(at).values())
    print(f"\n{len(OFFSETS)} offsets: relative difference {largest:.1e} at most")
    assert largest <= WITHIN


@pytest.mark.prove("positions")
@pytest.mark.parametrize("splits", [(), (40,), (1, 17)])
@pytest.mark.parametrize("preset", ["scout", "maverick"])
def test_chunked_attention_is_the_same_at_any_chunk(preset: str, splits: tuple[int, ...]) -> None:
    text = text_config(preset)
    attention = make_attention(text, 0)
    assert attention.chunked and text.use_qk_norm == (preset == "scout")

    def at(offset: int) -> np.ndarray:
        cache = make_layer_cache(text, text.layers[0])
        cache.offset = offset
        return outputs(attention, cache, splits)

    assert_same_everywhere(at)


@pytest.mark.prove("positions")
@pytest.mark.parametrize("preset", ["scout", "maverick"])
def test_a_chunk_that_fills_and_the_next_are_the_same_at_any_chunk(preset: str) -> None:
    """Content over a border: its second half starts the next chunk."""
    text = text_config(preset)
    attention = make_attention(text, 0)

    def at(offset: int) -> np.ndarray:
        cache = make_layer_cache(text, text.layers[0])
        # A chunk of 8,192 less the last half of the content, of which nothing is remembered.
        cache.offset = offset + CHUNK - TOKENS // 2
        kept = mx.zeros((1, text.num_key_value_heads, CHUNK, text.head_dim))
        cache.buffers["keys"].array, cache.buffers["values"].array = kept, mx.array(kept)
        return outputs(attention, cache, ())

    assert_same_everywhere(at)


@pytest.mark.parametrize("preset", ["scout", "maverick"])
def test_counting_from_the_first_token_would_drift(preset: str) -> None:
    """What the tests above would say of absolute positions: they see the difference."""
    text = text_config(preset)
    attention = make_attention(text, 0)
    rotate = attention.rope

    def at(offset: int) -> np.ndarray:
        cache = make_layer_cache(text, text.layers[0])
        cache.offset = offset
        attention.rope = lambda x, position: rotate(x, offset + position)
        return outputs(attention, cache, ())

    found = drift(at)
    assert found[0] == 0
    assert 10 * WITHIN < found[131_072] < found[1_048_576] < found[9_994_240]
