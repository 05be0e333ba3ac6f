"""How tokens are chosen, as a user sets it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlx_llama4.generation.adjustments import Adjustment, logit_bias, repetition_penalty
from mlx_llama4.generation.sampler import GREEDY_BELOW, Sampler, make_sampler


@dataclass(frozen=True)
class SamplingSettings:
    """seed None: a fresh one for each sampler. logit_bias: token id → what is added."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def is_random(self) -> bool:
        """Or is it always the likeliest token?"""
        return self.temperature >= GREEDY_BELOW

    def sampler(self) -> Sampler:
        """Raises InputError for values out of range, as `adjustments` does."""
        return make_sampler(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
        )

    def adjustments(self) -> tuple[Adjustment, ...]:
        penalty = repetition_penalty(self.repetition_penalty)
        return (
            *([penalty] if self.repetition_penalty != 1 else []),
            *([logit_bias(self.logit_bias)] if self.logit_bias else []),
        )
