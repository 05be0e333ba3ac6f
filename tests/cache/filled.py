"""Prompt caches that hold random tokens."""

import mlx.core as mx
import numpy as np

from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.checkpoint.identity import Identity
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.quantization import KVQuantization
from tests import tiny

IDENTITY = Identity("tiny", "model", "tokenizer")


def text(length: int) -> np.ndarray:
    return tiny.text_ids(length, seed=length)[0].astype(np.int32)


def filled(
    model: Llama4, ids: np.ndarray, quantization: KVQuantization | None = None
) -> PromptCache:
    cache = PromptCache(model.make_cache(quantization))
    mx.eval(model(mx.array(ids[None]), cache.layers))
    cache.record(ids, [])
    return cache
