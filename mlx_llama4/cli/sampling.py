"""How tokens are chosen, from what was typed and the model's own defaults."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import InputError

if TYPE_CHECKING:
    from mlx_llama4.cli.options import Sampling
    from mlx_llama4.generation.settings import SamplingSettings
    from mlx_llama4.prompt.tokenizer import Tokenizer


def sampling_settings(folder: Path, sampling: "Sampling") -> "SamplingSettings":
    """Raises InputError for a bias of a token that there is not; other values out of range are
    refused by what the settings make.
    """
    from mlx_llama4.config import load_generation_config
    from mlx_llama4.generation.settings import SamplingSettings

    defaults = load_generation_config(folder)
    temperature = defaults.temperature if defaults.do_sample else 0.0
    return SamplingSettings(
        temperature=temperature if sampling.temperature is None else sampling.temperature,
        top_p=defaults.top_p if sampling.top_p is None else sampling.top_p,
        top_k=defaults.top_k if sampling.top_k is None else sampling.top_k,
        min_p=0.0 if sampling.min_p is None else sampling.min_p,
        seed=sampling.seed,
        repetition_penalty=(
            1.0 if sampling.repetition_penalty is None else sampling.repetition_penalty
        ),
        logit_bias=_logit_biases(folder, sampling.logit_bias) if sampling.logit_bias else {},
    )


def _logit_biases(folder: Path, typed: tuple[str, ...]) -> dict[int, float]:
    from mlx_llama4.config import load_config
    from mlx_llama4.prompt.tokenizer import Tokenizer

    tokenizer, vocabulary = Tokenizer.load(folder), load_config(folder).text.vocab_size
    biases: dict[int, float] = {}
    for one in typed:
        token, bias = parse_logit_bias(one, tokenizer, vocabulary)
        if token in biases:
            raise InputError(f"--logit-bias {one}: token {token} has a bias already; give it once")
        biases[token] = bias
    return biases


def parse_logit_bias(typed: str, tokenizer: "Tokenizer", vocabulary: int) -> tuple[int, float]:
    """TOKEN=BIAS, where TOKEN is an id, a special token's name or a text of exactly one token.

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
