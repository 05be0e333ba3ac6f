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
    """Settings can be shared: what changes while tokens are drawn is in the sampler they make."""

    max_tokens: int = 4096
    # None: what `resolved` takes from the model, else 0 (the likeliest token).
    temperature: float | None = None
    # None: what `resolved` takes from the model, else 1 (all tokens).
    top_p: float | None = None
    # None: what `resolved` takes from the model, else 0 (all tokens).
    top_k: int | None = None
    # Leaves out tokens less probable than this times the likeliest; 0 leaves out none.
    min_p: float = 0.0
    # The same seed gives the same tokens. None: a fresh one for each sampler.
    seed: int | None = None
    # Above 1, tokens of prompt and answer become less likely.
    repetition_penalty: float = 1.0
    # Token id → what is added to its logit; -100 or less forbids it.
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    # The answer ends before the first of these texts.
    stop: tuple[str, ...] = ()
    # The statistics keep each token's log-probability, and those of so many of the likeliest.
    # None: they keep none.
    logprobs: int | None = None
    # The answer keeps to this schema.
    grammar: Grammar | None = None
    # Guesses at tokens, several of which are then verified at once: NgramDrafter, say. The tokens
    # stay the same up to rounding.
    draft: MakeDrafter | None = None
    # Takes the place of temperature, top_p, top_k, min_p and seed.
    sampler: Sampler | None = None
    # More changes to the logits, after the repetition penalty and the logit bias.
    adjustments: tuple[Adjustment, ...] = ()

    def resolved(self, defaults: GenerationConfig) -> "GenerationSettings":
        """With the model's own temperature, top_p and top_k where none are given."""
        temperature = defaults.temperature if defaults.do_sample else 0.0
        return replace(
            self,
            temperature=temperature if self.temperature is None else self.temperature,
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            top_k=defaults.top_k if self.top_k is None else self.top_k,
        )

    @property
    def is_random(self) -> bool:
        """Is a token drawn, rather than the likeliest taken?"""
        return self.sampler is not None or (self.temperature or 0.0) >= GREEDY_BELOW

    def draws_like(self, other: "GenerationSettings") -> bool:
        """Do both make the same sampler?"""
        return _drawing(self) == _drawing(other)

    def make_sampler(self) -> Sampler:
        """A new one, which begins at the seed, unless `sampler` is given.

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
        """Raises InputError for values out of range."""
        penalty = repetition_penalty(self.repetition_penalty)
        return (
            *([penalty] if self.repetition_penalty != 1 else []),
            *([logit_bias(self.logit_bias)] if self.logit_bias else []),
            *self.adjustments,
        )

    def check(self) -> None:
        """Raises InputError for values out of range, or that exclude each other."""
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
