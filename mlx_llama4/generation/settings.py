"""How an answer is generated: one object from the command line or a caller down to the sampler."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mlx_llama4.config import GenerationConfig
from mlx_llama4.errors import InputError
from mlx_llama4.generation.adjustments import Adjustment, logit_bias, repetition_penalty
from mlx_llama4.generation.drafting import MakeDrafter
from mlx_llama4.generation.grammar import Grammar
from mlx_llama4.generation.sampler import GREEDY_BELOW, Sampler, make_sampler
from mlx_llama4.generation.stop import StopStrings


@dataclass(frozen=True)
class GenerationSettings:
    """How to generate. Safe to share: all state that changes is in the sampler it makes."""

    max_tokens: int = 4096
    # None: what `resolved` takes from the model, else 0 (the likeliest token).
    temperature: float | None = None
    # None: what `resolved` takes from the model, else 1 (all tokens).
    top_p: float | None = None
    # None: what `resolved` takes from the model, else 0 (all tokens).
    top_k: int | None = None
    # Drops tokens less probable than this times the likeliest; 0 drops none.
    min_p: float = 0.0
    # The same seed gives the same tokens. None: a fresh one for each sampler.
    seed: int | None = None
    # Above 1, tokens of prompt and answer become less likely.
    repetition_penalty: float = 1.0
    # Token id → bias added to its logit; -100 or less forbids the token.
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    # The answer ends before the first of these strings.
    stop: tuple[str, ...] = ()
    # How many of the likeliest tokens to record at each step, beside the chosen token's own
    # log-probability. None: record nothing.
    logprobs: int | None = None
    # Constrains the answer to a schema.
    grammar: Grammar | None = None
    # Guesses tokens, which are then verified several at a time, for example NgramDrafter. The
    # answer stays the same up to rounding.
    draft: MakeDrafter | None = None
    # Replaces temperature, top_p, top_k, min_p and seed.
    sampler: Sampler | None = None
    # More changes to the logits, after the repetition penalty and the logit bias.
    adjustments: tuple[Adjustment, ...] = ()

    def resolved(self, defaults: GenerationConfig) -> "GenerationSettings":
        """Fill in temperature, top_p and top_k from the model's defaults where they are None."""
        temperature = defaults.temperature if defaults.do_sample else 0.0
        return replace(
            self,
            temperature=temperature if self.temperature is None else self.temperature,
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            top_k=defaults.top_k if self.top_k is None else self.top_k,
        )

    @property
    def is_random(self) -> bool:
        """Are tokens drawn at random, rather than the likeliest taken?"""
        return self.sampler is not None or (self.temperature or 0.0) >= GREEDY_BELOW

    def draws_like(self, other: "GenerationSettings") -> bool:
        """Do both make the same sampler?"""
        return _drawing(self) == _drawing(other)

    def make_sampler(self) -> Sampler:
        """Return `sampler` if it is set, else a new sampler that begins at the seed.

        Raises InputError for values out of range.
        """
        if self.sampler is not None:
            return self.sampler
        return make_sampler(
            temperature=0.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=0 if self.top_k is None else self.top_k,
            min_p=self.min_p,
            seed=self.seed,
        )

    def make_adjustments(self) -> tuple[Adjustment, ...]:
        """The adjustments to apply, in order. Raises InputError for values out of range."""
        penalty = repetition_penalty(self.repetition_penalty)
        return (
            *([penalty] if self.repetition_penalty != 1 else []),
            *([logit_bias(self.logit_bias)] if self.logit_bias else []),
            *self.adjustments,
        )

    def check(self) -> None:
        """Raise InputError for values that are out of range or exclude each other."""
        if self.max_tokens < 1:
            raise InputError(f"max_tokens {self.max_tokens} must be 1 or more")
        if self.logprobs is not None and self.logprobs < 0:
            raise InputError(f"logprobs {self.logprobs} must be 0 or more")
        if self.draft is not None and self.grammar is not None:
            raise InputError("tokens cannot be drafted where a grammar says which may come")
        StopStrings(self.stop)
        self.make_sampler()
        self.make_adjustments()


DEFAULTS = GenerationSettings()


def _drawing(settings: GenerationSettings) -> tuple[object, ...]:
    return (
        settings.temperature,
        settings.top_p,
        settings.top_k,
        settings.min_p,
        settings.seed,
        settings.sampler,
    )
