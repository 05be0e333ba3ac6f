"""Decode one token at a time, keeping the device ahead of the host."""

from collections.abc import Iterator, Sequence

import mlx.core as mx

from mlx_llama4.cache.kv import KVCache
from mlx_llama4.generation.choice import Choice, Chooser, Chosen, wait_for
from mlx_llama4.generation.grammar import GrammarMatcher
from mlx_llama4.model.llama4 import Llama4


def decode(
    model: Llama4, logits: mx.array, cache: Sequence[KVCache], choose: Chooser, count: int
) -> Iterator[Chosen]:
    """Yield `count` tokens, computing the next one while the caller handles the current one.

    With streamed experts nothing is computed ahead: the host itself waits for the disk, so each
    token would be shown only when the next one is known, and the last would cost a useless read.
    """
    ahead = model.expert_statistics is None
    upcoming = choose(logits)
    upcoming.start()
    for remaining in reversed(range(count)):
        choice = upcoming
        if remaining and ahead:
            upcoming = _next(model, choice.token, cache, choose)
        yield wait_for(choice)
        if remaining and not ahead:
            upcoming = _next(model, choice.token, cache, choose)


def decode_constrained(
    model: Llama4,
    logits: mx.array,
    cache: Sequence[KVCache],
    choose: Chooser,
    count: int,
    matcher: GrammarMatcher,
) -> Iterator[Chosen]:
    """Like `decode`, with only the tokens that a grammar allows.

    What is allowed depends on the previous token, so the host waits for each token; only the next
    logits are computed ahead.
    """
    ahead = model.expert_statistics is None
    for remaining in reversed(range(count)):
        choice = choose(logits, matcher.allowed())
        chosen = wait_for(choice)
        matcher.accept(chosen.token)
        if remaining and ahead:
            logits = model(choice.token[:, None], cache)[:, -1]
            mx.async_eval(logits)
        yield chosen
        if remaining and not ahead:
            logits = model(choice.token[:, None], cache)[:, -1]


def _next(model: Llama4, token: mx.array, cache: Sequence[KVCache], choose: Chooser) -> Choice:
    upcoming = choose(model(token[:, None], cache)[:, -1])
    upcoming.start()
    return upcoming
