"""Attends to the same content at several positions, and prints how far the output moves.

sys.argv[2:]: config.json as text, a safetensors file with input x and projections, offsets.
Prints offset → the norm of the difference from the output at the first offset, over that output's.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx import nn

# x [1, tokens, hidden] and an offset → the output of attention with an empty cache at that offset.
Attend = Callable[[mx.array, int], mx.array]


def ours(raw: dict[str, Any]) -> tuple[nn.Module, Attend]:
    from mlx_llama4.config import parse_config
    from mlx_llama4.model.attention import Attention
    from mlx_llama4.model.llama4 import ATTENTION_STEP, make_layer_cache

    text = parse_config(raw).text
    attention = Attention(text, text.layers[0])

    def attend(x: mx.array, offset: int) -> mx.array:
        cache = make_layer_cache(text, text.layers[0])
        cache.offset = offset
        return attention(x, cache, ATTENTION_STEP)

    return attention, attend


def mlx_lm(raw: dict[str, Any]) -> tuple[nn.Module, Attend]:
    from mlx_lm.models.cache import ChunkedKVCache
    from mlx_lm.models.llama4 import Attention, TextArgs

    text = TextArgs.from_dict(raw["text_config"])
    attention = Attention(text, 0)
    return attention, peer_attend(attention, ChunkedKVCache, text.attention_chunk_size)


def mlx_vlm(raw: dict[str, Any]) -> tuple[nn.Module, Attend]:
    from mlx_vlm.models.cache import ChunkedKVCache
    from mlx_vlm.models.llama4.config import TextConfig
    from mlx_vlm.models.llama4.language import Attention

    text = TextConfig.from_dict(raw["text_config"])
    attention = Attention(text, 0)
    return attention, peer_attend(attention, ChunkedKVCache, text.attention_chunk_size)


def peer_attend(attention: nn.Module, make_cache: Callable[[int], Any], chunk: int) -> Attend:
    """Both peers' caches and attention are called alike."""

    def attend(x: mx.array, offset: int) -> mx.array:
        cache = make_cache(chunk)
        cache.offset = cache.start_position = offset
        return attention(x, "causal", cache)

    return attend


def main(engine: str, config: str, file: str, *offsets: str) -> None:
    make = {"ours": ours, "mlx-lm": mlx_lm, "mlx-vlm": mlx_vlm}[engine]
    attention, attend = make(json.loads(config))
    arrays = mx.load(file)
    assert isinstance(arrays, dict)
    x = arrays.pop("x")
    attention.load_weights(list(arrays.items()))
    first = attend(x, int(offsets[0])).astype(mx.float32)
    drifts = {}
    for offset in offsets:
        error = attend(x, int(offset)).astype(mx.float32) - first
        drifts[offset] = (mx.linalg.norm(error) / mx.linalg.norm(first)).item()
    print(json.dumps(drifts))


main(*sys.argv[1:])
