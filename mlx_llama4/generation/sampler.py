"""Logits → next token, as closures. Order of the filters is transformers': temperature, top-k,
top-p, min-p."""

import math
import secrets
from collections.abc import Callable

import mlx.core as mx

from mlx_llama4.errors import InputError

GREEDY_BELOW = 1e-6  # divided by such a temperature, float32 logits overflow

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
    """temperature 0 (or below 1e-6) takes the likeliest token; top_p 1, top_k 0 and min_p 0 leave
    that filter out.

    The same seed gives the same tokens for the same logits; None takes a fresh one. Raises
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
    key = mx.random.key(secrets.randbits(32) if seed is None else seed)

    def sample(logits: mx.array) -> mx.array:
        nonlocal key
        key, this = mx.random.split(key)
        logits = logits.astype(mx.float32) / temperature
        if top_k and top_k < logits.shape[-1]:
            # From here on over k candidates only, so that top-p need not sort the vocabulary.
            candidates = mx.argpartition(-logits, kth=top_k - 1, axis=-1)[..., :top_k]
            logits = mx.take_along_axis(logits, candidates, axis=-1)
        else:
            candidates = None
        if top_p < 1:
            logits = keep_top_p(logits, top_p)
        if min_p:
            logits = keep_min_p(logits, min_p)
        token = mx.random.categorical(logits, key=this)
        if candidates is None:
            return token
        return mx.take_along_axis(candidates, token[..., None], axis=-1)[..., 0]

    return sample


def keep_top_p(logits: mx.array, top_p: float) -> mx.array:
    """Logits with -inf outside the smallest set of tokens whose probability reaches top_p.

    The likeliest token always stays.
    """
    order = mx.argsort(-logits, axis=-1)
    falling = mx.softmax(mx.take_along_axis(logits, order, axis=-1), axis=-1, precise=True)
    before = mx.cumsum(falling, axis=-1) - falling  # probability of all likelier tokens
    enough = before < max(top_p, 1e-6)  # float32 makes 0 of less, and no token would stay
    kept = mx.put_along_axis(mx.zeros(logits.shape, mx.bool_), order, enough, axis=-1)
    return mx.where(kept, logits, -mx.inf)


def keep_min_p(logits: mx.array, min_p: float) -> mx.array:
    """Logits with -inf for tokens less probable than `min_p` times the likeliest."""
    least = mx.max(logits, axis=-1, keepdims=True) + math.log(min_p)
    return mx.where(logits >= least, logits, -mx.inf)
