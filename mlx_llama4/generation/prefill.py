"""Read a prompt into the cache, span by span.

Each span of tokens passes through all layers. Within the span, attention takes steps that end at
chunk borders; the feed-forward takes the span whole. The span's length bounds the activations.
"""

from collections.abc import Callable, Generator, Sequence

import mlx.core as mx

from mlx_llama4.cache.kv import KVCache
from mlx_llama4.generation.image_features import ImageFeatureCache, PromptFeatures
from mlx_llama4.memory import PREFILL_SPAN
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.prompt import Prompt


def ignore_progress(done: int, total: int) -> None:
    pass


def prefill(
    model: Llama4,
    prompt: Prompt,
    cache: Sequence[KVCache],
    *,
    span: int = PREFILL_SPAN,
    features: ImageFeatureCache | None = None,
    on_progress: Callable[[int, int], None] = ignore_progress,
) -> mx.array:
    """Read a prompt; return the logits [1, vocabulary] after its last token.

    Tokens already in the cache count as the prompt's beginning and are skipped. Pictures in
    `features` are not encoded again. on_progress is called with (tokens in the cache, tokens in
    all) after each span but the last.
    """
    spans = prefill_spans(model, prompt, cache, span=span, features=features)
    while True:
        try:
            done, total = next(spans)
        except StopIteration as end:
            return end.value
        on_progress(done, total)


def prefill_spans(
    model: Llama4,
    prompt: Prompt,
    cache: Sequence[KVCache],
    *,
    span: int = PREFILL_SPAN,
    features: ImageFeatureCache | None = None,
) -> Generator[tuple[int, int], None, mx.array]:
    """Like `prefill`, one span per `next`, so that others can use the device in between.

    Yields (tokens in the cache, tokens in all) after each span but the last, then returns the
    logits [1, vocabulary] after the prompt's last token, lazily. All pictures are encoded before
    the first span.
    """
    total, offset = len(prompt.ids), cache[0].offset
    if offset >= total:
        raise ValueError(f"the cache holds {offset} tokens, the prompt has only {total}")
    prompt_features = PromptFeatures(model, prompt, features or ImageFeatureCache(), offset)
    while True:
        # Spans end at multiples of their length, so that they meet the chunk borders even after an
        # odd start: in the releases those are multiples too.
        stop = min((offset // span + 1) * span, total)
        ids = prompt.ids[None, offset:stop]
        embeddings = model.embed(ids, prompt_features.of(offset, stop))
        # Lazily: for all spans but the last, only what the caches need is ever computed.
        logits = model(embeddings, cache, last_only=True)
        offset = stop
        if offset == total:
            return logits[:, -1]
        mx.eval([array for layer in cache for array in layer.arrays])
        mx.clear_cache()
        yield offset, total
