"""Logits → the next token and what is told of it, lazily."""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlx_llama4.generation.adjustments import Adjustment
from mlx_llama4.generation.sampler import RandomSampler, Sampler


class Choice(NamedTuple):
    """token [1]; its log-probability [1]; the likeliest tokens and theirs, [1, K], or nothing."""

    token: mx.array
    logprob: mx.array
    likeliest: tuple[mx.array, ...] = ()

    def start(self) -> None:
        mx.async_eval(self.token, self.logprob, *self.likeliest)


class Chosen(NamedTuple):
    """A Choice on the host; `likeliest` are (token, log-probability), the likeliest first."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


class Mark(NamedTuple):
    """What a Chooser remembers: which tokens there have been, and the sampler's key."""

    seen: mx.array | None
    key: mx.array | None


class Chooser:
    """For one answer: remembers which tokens there have been, if an adjustment asks for that."""

    def __init__(
        self,
        sampler: Sampler,
        adjustments: Sequence[Adjustment] = (),
        likeliest: int = 0,
        prompt: np.ndarray | None = None,
    ):
        """likeliest: how many tokens to tell of; prompt: the ids that came before, int32 [L]."""
        self._sampler = sampler
        self._adjustments = tuple(adjustments)
        self._likeliest = likeliest
        self._prompt = prompt
        self._seen: mx.array | None = None

    def __call__(self, logits: mx.array, allowed: mx.array | None = None) -> Choice:
        """From logits [1, vocabulary]; allowed: bool [vocabulary], by a grammar.

        Log-probabilities are the model's own, before adjustments, grammar, temperature and
        filters; in float32: 16 bits leave 0.1 nats.
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
        drawing = isinstance(self._sampler, RandomSampler)
        return Mark(self._seen, self._sampler.key if drawing else None)

    def take_back(self, mark: Mark) -> None:
        """Go on as if nothing had been chosen since. A sampler of another kind draws on."""
        self._seen = mark.seen
        if mark.key is not None:
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
    """The only wait of the decode loop: for the token that is about to be shown."""
    token, logprob = choice.token.item(), choice.logprob.item()
    if not choice.likeliest:
        return Chosen(token, logprob, ())
    tokens, logprobs = (array[0].tolist() for array in choice.likeliest)
    return Chosen(token, logprob, tuple(zip(tokens, logprobs, strict=True)))


def _top(logits: mx.array, count: int) -> mx.array:
    """The ids of the `count` largest logits, the largest first: [1, count]."""
    count = min(count, logits.shape[-1])
    tokens = mx.argpartition(-logits, kth=count - 1, axis=-1)[:, :count]
    order = mx.argsort(-mx.take_along_axis(logits, tokens, axis=-1), axis=-1)
    return mx.take_along_axis(tokens, order, axis=-1)
