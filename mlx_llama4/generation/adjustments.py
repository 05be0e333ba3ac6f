"""Changes to logits by what was read and said, before a token is chosen from them.

An adjustment takes logits [1, vocabulary], float32, and which tokens there have been so far,
bool [vocabulary]; it returns the new logits. All is lazy: nothing waits for the device.
"""

import math
from collections.abc import Callable, Mapping

import mlx.core as mx

from mlx_llama4.errors import InputError

Adjustment = Callable[[mx.array, mx.array], mx.array]

FORBIDS = -100.0  # as a bias: this or less, for which other software too takes it


def repetition_penalty(penalty: float) -> Adjustment:
    """Make every token of prompt and answer less likely, by transformers' rule: a logit above 0
    is divided by the penalty, another multiplied. 1 changes nothing; below 1 repetition is
    encouraged.

    There is no window: it looks back to the first token. Raises InputError unless above 0.
    """
    if not 0 < penalty < math.inf:
        raise InputError(f"repetition penalty {penalty} must be above 0")

    def adjust(logits: mx.array, seen: mx.array) -> mx.array:
        return mx.where(seen, mx.where(logits < 0, logits * penalty, logits / penalty), logits)

    return adjust


def logit_bias(biases: Mapping[int, float]) -> Adjustment:
    """Add to the logits of some tokens, given by id; -100 or less forbids a token.

    Raises InputError for a bias that is no number or +inf.
    """
    for token, bias in biases.items():
        if math.isnan(bias) or bias == math.inf:
            raise InputError(f"the bias of token {token} must be a number, not {bias}")
    ids = mx.array(list(biases))
    values = mx.array([bias if bias > FORBIDS else -math.inf for bias in biases.values()])

    def adjust(logits: mx.array, seen: mx.array) -> mx.array:
        return logits.at[..., ids].add(values)

    return adjust
