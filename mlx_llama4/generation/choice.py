"""Logits → the next token and its log-probabilities, lazily."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import mlx.core as mx
import numpy as np

from mlx_llama4.generation.adjustments import Adjustment
from mlx_llama4.generation.sampler import RandomSampler, Sampler


class Choice(NamedTuple):
    """A chosen token, still lazy."""

    token: mx.array  # [1]
    logprob: mx.array  # [1]
    # The likeliest tokens and their log-probabilities, [1, K] each; empty if not asked for.
    likeliest: tuple[mx.array, ...] = ()

    def start(self) -> None:
        mx.async_eval(self.token, self.logprob, *self.likeliest)


class Chosen(NamedTuple):
    """A Choice on the host."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]  # (token, log-probability), the likeliest first


class Mark(NamedTuple):
    """A Chooser's state, to return to."""

    seen: mx.array | None  # bool [vocabulary]: tokens of the prompt and the answer
    key: mx.array | None  # the sampler's random key


class Chooser:
    """Chooses the tokens of one answer; tracks the tokens seen if there are adjustments."""

    def __init__(
        self,
        sampler: Sampler,
        adjustments: Sequence[Adjustment] = (),
        likeliest: int = 0,
        prompt: np.ndarray | None = None,
    ):
        """likeliest: how many tokens to report at each step. prompt: its ids, int32 [L]."""
        self._sampler = sampler
        self._adjustments = tuple(adjustments)
        self._likeliest = likeliest
        self._prompt = prompt
        self._seen: mx.array | None = None

    def __call__(self, logits: mx.array, allowed: mx.array | None = None) -> Choice:
        """Choose from logits [1, vocabulary]. allowed: a grammar's mask, bool [vocabulary].

        Log-probabilities are the model's own, before adjustments, grammar, temperature and
        filters. They are computed in float32, because 16 bits would round them to 0.1 nats.
        """
        logits = logits.astype(mx.float32)
        scores = self._adjusted(logits)
        if allowed is not None:
            scores = mx.where(allowed, scores, -mx.inf)
        token = self._sampler(scores)
        if self._seen is not None:
            self._seen = mx.put_along_axis(self._seen, token, mx.array(True), axis=0)
        chosen = mx.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
        total = mx.logsumexp(logits, axis=-1)
        if not self._likeliest:
            return Choice(token, chosen - total)
        tokens = _top(logits, self._likeliest)
        logprobs = mx.take_along_axis(logits, tokens, axis=-1) - total[:, None]
        return Choice(token, chosen - total, (tokens, logprobs))

    def mark(self) -> Mark:
        key = self._sampler.key if isinstance(self._sampler, RandomSampler) else None
        return Mark(self._seen, key)

    def take_back(self, mark: Mark) -> None:
        """Undo all choices since the mark. Only a RandomSampler's draws are undone."""
        self._seen = mark.seen
        if mark.key is not None and isinstance(self._sampler, RandomSampler):
            self._sampler.key = mark.key

    def _adjusted(self, logits: mx.array) -> mx.array:
        if not self._adjustments:
            return logits
        if self._seen is None:
            seen = np.zeros(logits.shape[-1], np.bool_)
            seen[self._prompt] = True
            self._seen = mx.array(seen)
        for adjust in self._adjustments:
            logits = adjust(logits, self._seen)
        return logits


def wait_for(choice: Choice) -> Chosen:
    """Wait for the token that is about to be shown: the decode loop's only wait."""
    # MLX's stub says that items may be any numbers.
    token, logprob = cast("int", choice.token.item()), cast("float", choice.logprob.item())
    if not choice.likeliest:
        return Chosen(token, logprob, ())
    tokens = cast("list[int]", choice.likeliest[0][0].tolist())
    logprobs = cast("list[float]", choice.likeliest[1][0].tolist())
    return Chosen(token, logprob, tuple(zip(tokens, logprobs, strict=True)))


def _top(logits: mx.array, count: int) -> mx.array:
    """The ids of the `count` largest logits, largest first: [1, count]."""
    count = min(count, logits.shape[-1])
    tokens = mx.argpartition(-logits, kth=count - 1, axis=-1)[:, :count]
    order = mx.argsort(-mx.take_along_axis(logits, tokens, axis=-1), axis=-1)
    return mx.take_along_axis(tokens, order, axis=-1)
