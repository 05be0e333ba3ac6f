"""Parse the options for how tokens are chosen."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import InputError

if TYPE_CHECKING:
    from mlx_llama4.opening import ModelFolder
    from mlx_llama4.prompt.tokenizer import Tokenizer


def parse_stops(typed: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(map(terminal.as_typed, typed or ()))


def parse_logit_biases(folder: "ModelFolder", typed: Sequence[str] | None) -> dict[int, float]:
    """Biases by token. Raises InputError for an unknown token."""
    if not typed:
        return {}
    tokenizer, vocabulary = folder.processor.tokenizer, folder.config.text.vocab_size
    biases: dict[int, float] = {}
    for one in typed:
        token, bias = parse_logit_bias(one, tokenizer, vocabulary)
        if token in biases:
            raise InputError(f"--logit-bias {one}: token {token} has a bias already; give it once")
        biases[token] = bias
    return biases


def parse_logit_bias(typed: str, tokenizer: "Tokenizer", vocabulary: int) -> tuple[int, float]:
    """Parse TOKEN=BIAS; TOKEN is an id, a special token's name or text of exactly one token.

    Raises InputError.
    """
    text, equals, value = terminal.as_typed(typed).rpartition("=")
    try:
        bias = float(value)
    except ValueError:
        bias = math.nan
    if not equals or not text or math.isnan(bias) or bias == math.inf:
        raise InputError(f"--logit-bias {typed}: write it as TOKEN=BIAS, such as 1234=-100")
    if text.isascii() and text.isdecimal():
        if int(text) >= vocabulary:
            raise InputError(f"--logit-bias {typed}: the model's tokens are 0 to {vocabulary - 1}")
        return int(text), bias
    if text in tokenizer.special_ids:
        return tokenizer.special_ids[text], bias
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise InputError(
            f"--logit-bias {typed}: {text!r} is {len(ids)} tokens ({', '.join(map(str, ids))}); "
            "give them one by one, by their ids"
        )
    return ids[0], bias
