"""Prompt → tokens, one at a time, with the device kept one token ahead of the host."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import mlx.core as mx

from mlx_llama4.cache.kv import KVCache
from mlx_llama4.generation.detokenizer import StreamingDetokenizer
from mlx_llama4.generation.image_features import ImageFeatureCache
from mlx_llama4.generation.prefill import PREFILL_SPAN, ignore_progress, prefill
from mlx_llama4.generation.sampler import Sampler, greedy
from mlx_llama4.memory import CACHE_BLOCK_TOKENS
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.offload.expert_cache import StreamingStatistics
from mlx_llama4.prompt.processor import Prompt, check_length

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Step:
    """One generated token. `text` is what became complete with it; `logprob` its natural
    log-probability under the model, before temperature and filters. `finish_reason` is set on
    the last step: "stop" for an end token, which has no text, "length" for a full quota.
    """

    text: str
    token: int
    logprob: float
    finish_reason: FinishReason | None = None


@dataclass
class Statistics:
    """What a generation took. Rates are tokens a second; None until there is one."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompt, found in the cache
    image_tiles: int = 0
    image_tokens: int = 0
    generated_tokens: int = 0
    time_to_first_token: float | None = None  # seconds
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    peak_memory_bytes: int = 0
    prefill_experts: StreamingStatistics | None = None  # None: all experts are in memory
    decode_experts: StreamingStatistics | None = None
    finish_reason: FinishReason | None = None

    def _start(self, model: Llama4, prompt: Prompt, cached: int) -> None:
        self.prompt_tokens = len(prompt.ids)
        self.cached_tokens = cached
        self.image_tiles = prompt.num_tiles
        if model.config.vision is not None:
            self.image_tokens = prompt.num_tiles * model.config.vision.tokens_per_tile

    def _count(self, seconds: float) -> None:
        """One more token, `seconds` after the start."""
        if self.time_to_first_token is None:
            self.time_to_first_token = seconds
            new = self.prompt_tokens - self.cached_tokens
            self.prefill_tokens_per_second = new / seconds
        else:
            decoding = seconds - self.time_to_first_token
            self.decode_tokens_per_second = self.generated_tokens / decoding
        self.generated_tokens += 1
        self.peak_memory_bytes = mx.get_peak_memory()


def generate(
    model: Llama4,
    prompt: Prompt,
    *,
    token_bytes: Callable[[int], bytes],
    end_tokens: Collection[int],
    max_tokens: int,
    sampler: Sampler = greedy,
    cache: Sequence[KVCache] | None = None,
    features: ImageFeatureCache | None = None,
    prefill_step: int = PREFILL_SPAN,
    statistics: Statistics | None = None,
    on_prefill: Callable[[int, int], None] = ignore_progress,
) -> Iterator[Step]:
    """Continue the prompt until an end token or `max_tokens` tokens.

    `cache` may hold the prompt's beginning. It takes in the prompt and then the tokens yielded,
    the last one perhaps not: its `offset` tells. `features` keeps what the vision tower makes of
    pictures. prefill_step: how many tokens of the prompt are worked through at once. Raises
    PromptError if the prompt is empty or longer than the model's context.
    """
    check_length(prompt, model.config)
    max_tokens = min(max_tokens, model.config.text.max_position_embeddings - len(prompt.ids))
    cache = model.make_cache() if cache is None else cache
    statistics = Statistics() if statistics is None else statistics
    detokenizer = StreamingDetokenizer(token_bytes)
    mx.reset_peak_memory()
    started_at = time.perf_counter()
    experts = model.expert_statistics
    loaded = experts and replace(experts)
    statistics._start(model, prompt, cached=cache[0].offset)
    for layer in cache:
        layer.reserve(room(prompt, max_tokens))
    logits = prefill(
        model, prompt, cache, span=prefill_step, features=features, on_progress=on_prefill
    )
    prefilled = experts and replace(experts)
    statistics.prefill_experts = experts and experts.since(loaded)
    tokens = _tokens(model, logits, cache, sampler, max_tokens)
    for count, (token, logprob) in enumerate(tokens, start=1):
        statistics._count(time.perf_counter() - started_at)
        statistics.decode_experts = experts and experts.since(prefilled)
        if token in end_tokens:
            statistics.finish_reason = "stop"
        elif count == max_tokens:
            statistics.finish_reason = "length"
        text = "" if token in end_tokens else detokenizer.add(token)
        yield Step(text, token, logprob, statistics.finish_reason)
        if statistics.finish_reason is not None:
            return


def room(prompt: Prompt, max_tokens: int) -> int:
    """Tokens that caches are given room for at the start; long answers make them grow."""
    return len(prompt.ids) + min(max_tokens, CACHE_BLOCK_TOKENS)


def _tokens(
    model: Llama4, logits: mx.array, cache: Sequence[KVCache], sampler: Sampler, count: int
) -> Iterator[tuple[int, float]]:
    """`count` tokens and log-probabilities; while the caller has one, the next is computed.

    Not where experts are read from the disk: the host itself waits for them, and would show each
    token only when the next is known, and read for one after the last.
    """
    ahead = model.expert_statistics is None
    upcoming = _choose(logits, sampler)
    mx.async_eval(*upcoming)
    for remaining in reversed(range(count)):
        token, logprob = upcoming
        if remaining and ahead:
            upcoming = _next(model, token, cache, sampler)
        # The only wait: for the token that is about to be shown.
        yield token.item(), logprob.item()
        if remaining and not ahead:
            upcoming = _next(model, token, cache, sampler)


def _next(
    model: Llama4, token: mx.array, cache: Sequence[KVCache], sampler: Sampler
) -> tuple[mx.array, mx.array]:
    upcoming = _choose(model(token[:, None], cache)[:, -1], sampler)
    mx.async_eval(*upcoming)
    return upcoming


def _choose(logits: mx.array, sampler: Sampler) -> tuple[mx.array, mx.array]:
    """Tokens [B] and their log-probabilities [B], lazily, in float32: 16 bits leave 0.1 nats."""
    logits = logits.astype(mx.float32)
    tokens = sampler(logits)
    chosen = mx.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return tokens, chosen - mx.logsumexp(logits, axis=-1)
