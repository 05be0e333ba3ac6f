"""How much each expert of a layer has been wanted of late: the colder goes first.

A use counts half as much after HALF_LIFE further tokens, whether they came in one step or one by
one.
"""

import numpy as np

HALF_LIFE = 128  # tokens


class Heat:
    """Of one layer's experts. values: float [experts]."""

    def __init__(self, num_experts: int):
        self.values = np.zeros(num_experts)

    def note(self, chosen: np.ndarray, tokens: int) -> None:
        """chosen: experts that as many tokens took, in their order, int [tokens · k]."""
        ages = np.arange(tokens - 1, -1, -1).repeat(len(chosen) // tokens)
        weights = np.exp2(-ages / HALF_LIFE)
        self.values *= 2 ** (-tokens / HALF_LIFE)
        self.values += np.bincount(chosen, weights, len(self.values))

    def coldest_first(self, experts: list[int]) -> list[int]:
        return sorted(experts, key=self.values.__getitem__)
