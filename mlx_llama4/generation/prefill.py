"""A prompt into the cache.

Goes span of tokens → layers → attention steps inside the span that end at chunk borders. The
span bounds activations; the feed-forward takes it whole.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from mlx_llama4.cache.kv import KVCache
from mlx_llama4.errors import PromptError
from mlx_llama4.memory import PREFILL_SPAN
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.processor import Prompt


def prefill(
    model: Llama4,
    prompt: Prompt,
    cache: Sequence[KVCache],
    *,
    span: int = PREFILL_SPAN,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> mx.array:
    """Logits [1, vocabulary] after the prompt's last token.

    Tokens that the cache holds already are taken as the prompt's beginning and skipped.
    on_progress is told (tokens in the cache, tokens in all) after each span.
    """
    total, offset = len(prompt.ids), cache[0].offset
    if offset >= total:
        raise ValueError(f"the cache holds {offset} tokens, the prompt has only {total}")
    features = _ImageFeatures(model, prompt, offset)
    while True:
        # Spans end at multiples of their length, so that after an odd start they still meet
        # the chunk borders, which are multiples too in the releases.
        stop = min((offset // span + 1) * span, total)
        ids = prompt.ids[None, offset:stop]
        embeddings = model.embed(ids, features.of(offset, stop))
        # Lazily: of all spans but the last, only what the caches need is ever computed.
        logits = model(embeddings, cache, last_only=True)
        offset = stop
        if offset == total:
            return logits[:, -1]
        mx.eval([array for layer in cache for array in layer.arrays])
        mx.clear_cache()
        on_progress(offset, total)


class _ImageFeatures:
    """Features of the images whose slots lie at or after token `start`, by range of tokens."""

    def __init__(self, model: Llama4, prompt: Prompt, start: int):
        self._slots = np.flatnonzero(prompt.ids == model.config.image_token_id)
        tokens = [len(image.tiles) * model.config.vision.tokens_per_tile for image in prompt.images]
        if sum(tokens) != len(self._slots):
            raise PromptError(
                f"the prompt has {len(self._slots)} <|patch|> tokens but its images give "
                f"{sum(tokens)} features"
            )
        self._first = 0
        needed = list(prompt.images)
        while needed and self._slots[self._first + tokens[0] - 1] < start:
            self._first += tokens.pop(0)
            needed.pop(0)
        features = [model.image_features(image.pixel_values()) for image in needed]
        self._features = mx.concatenate(features) if features else None

    def of(self, start: int, stop: int) -> mx.array | None:
        begin, end = np.searchsorted(self._slots, [start, stop]) - self._first
        return None if begin == end else self._features[begin:end]
