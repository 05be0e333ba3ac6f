"""Logits → next token. Filters come in transformers' order: temperature, top-k, top-p, min-p."""

import math
import secrets
from collections.abc import Callable

import mlx.core as mx

from mlx_llama4.errors import InputError

GREEDY_BELOW = 1e-6  # dividing float32 logits by a lower temperature would overflow

Sampler = Callable[[mx.array], mx.array]  # logits [B, vocabulary] → tokens [B], lazily


def greedy(logits: mx.array) -> mx.array:
    return mx.argmax(logits, axis=-1)


def make_sampler(
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | None = None,
    *,
    min_p: float = 0.0,
) -> Sampler:
    """Make a sampler. temperature 0 (or below 1e-6) takes the likeliest token; top_p 1, top_k 0 and
    min_p 0 turn that filter off.

    The same seed gives the same tokens for the same logits; None picks a fresh seed. Raises
    InputError for values out of range.
    """
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature {temperature} must be 0 or more")
    if not 0 < top_p <= 1:
        raise InputError(f"top-p {top_p} must be above 0 and at most 1")
    if top_k < 0:
        raise InputError(f"top-k {top_k} must be 0 or more")
    if not 0 <= min_p <= 1:
        raise InputError(f"min-p {min_p} must be from 0 to 1")
    if seed is not None and not 0 <= seed < 2**64:
        raise InputError(f"seed {seed} must be from 0 to 2^64 - 1")
    if temperature < GREEDY_BELOW:
        return greedy
    return RandomSampler(
        temperature, top_p, top_k, min_p, secrets.randbits(32) if seed is None else seed
    )


class RandomSampler:
    """Draws tokens at random. Setting `key` back to an earlier value repeats the later draws."""

    def __init__(self, temperature: float, top_p: float, top_k: int, min_p: float, seed: int):
        """Takes the values of `make_sampler`, which has checked them."""
        self._temperature, self._top_p = temperature, top_p
        self._top_k, self._min_p = top_k, min_p
        self.key = mx.random.key(seed)

    def __call__(self, logits: mx.array) -> mx.array:
        self.key, this = mx.random.split(self.key)
        logits = logits.astype(mx.float32) / self._temperature
        candidates = None
        if self._top_k and self._top_k < logits.shape[-1]:
            # From here on only k candidates are left, so top-p need not sort the vocabulary.
            parted = mx.argpartition(-logits, kth=self._top_k - 1, axis=-1)
            candidates = parted[..., : self._top_k]
            logits = mx.take_along_axis(logits, candidates, axis=-1)
        if self._top_p < 1:
            logits = keep_top_p(logits, self._top_p)
        if self._min_p:
            logits = keep_min_p(logits, self._min_p)
        token = mx.random.categorical(logits, key=this)
        if candidates is None:
            return token
        return mx.take_along_axis(candidates, token[..., None], axis=-1)[..., 0]


def keep_top_p(logits: mx.array, top_p: float) -> mx.array:
    """Set logits to -inf outside the smallest set of tokens whose probability reaches top_p.

    The likeliest token always stays.
    """
    order = mx.argsort(-logits, axis=-1)
    falling = mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1, precise=True)
    before = mx.cumsum(falling, axis=-1) - falling  # probability of all likelier tokens
    enough = before < max(top_p, 1e-6)  # less would be 0 in float32, and no token would stay
    kept = mx.put_along_axis(mx.zeros(logits.shape, mx.bool_), order, enough, axis=-1)
    return mx.where(kept, logits, -mx.inf)


def keep_min_p(logits: mx.array, min_p: float) -> mx.array:
    """Set the logits of tokens less probable than `min_p` times the likeliest to -inf."""
    least = mx.max(logits, axis=-1, keepdims=True) + math.log(min_p)
    return mx.where(logits >= least, logits, -mx.inf)
