"""Adjust logits before a token is chosen, given the tokens seen so far.

An adjustment takes logits [1, vocabulary], float32, and a mask of the tokens seen so far,
bool [vocabulary]; it returns the new logits. Everything is lazy: nothing waits for the device.
"""

import math
from collections.abc import Callable, Mapping

import mlx.core as mx

from mlx_llama4.errors import InputError

Adjustment = Callable[[mx.array, mx.array], mx.array]

FORBIDS = -100.0  # a bias this low or lower forbids the token, as in other software


def repetition_penalty(penalty: float) -> Adjustment:
    """Make tokens that the prompt or the answer already has less likely, by transformers' rule.

    A logit above 0 is divided by the penalty, any other is multiplied by it. 1 changes nothing;
    a value below 1 encourages repetition. There is no window: every token since the first counts.
    Raises InputError unless the penalty is above 0.
    """
    if not 0 < penalty < math.inf:
        raise InputError(f"repetition penalty {penalty} must be above 0")

    def adjust(logits: mx.array, seen: mx.array) -> mx.array:
        return mx.where(seen, mx.where(logits < 0, logits * penalty, logits / penalty), logits)

    return adjust


def logit_bias(biases: Mapping[int, float]) -> Adjustment:
    """Add a bias to the logits of the given token ids; -100 or less forbids a token.

    Raises InputError for a bias that is NaN or +inf.
    """
    for token, bias in biases.items():
        if math.isnan(bias) or bias == math.inf:
            raise InputError(f"the bias of token {token} must be a number, not {bias}")
    ids = mx.array(list(biases))
    values = mx.array([bias if bias > FORBIDS else -math.inf for bias in biases.values()])

    def adjust(logits: mx.array, seen: mx.array) -> mx.array:
        return logits.at[..., ids].add(values)

    return adjust
