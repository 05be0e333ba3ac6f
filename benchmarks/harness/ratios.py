"""How ours compares: the ratio of medians, and how far chance alone could move it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Ratio:
    """Median of ours over median of a peer; low, high: a 95% interval, None of a single round."""

    value: float
    low: float | None
    high: float | None


def ratio_of_medians(ours: Sequence[float], peer: Sequence[float], seed: int = 0) -> Ratio | None:
    """Entry i of both is round i; None if the peer's median is not above zero.

    The interval is the percentile bootstrap's: rounds are drawn with replacement, both engines'
    figures of a round together, so that a slow minute of the machine counts for both. Few
    rounds make it too narrow: it cannot reach beyond the ratios that were seen.
    """
    rounds = np.array([ours, peer], float)  # [2, rounds]
    medians = np.median(rounds, axis=1)
    if medians[1] <= 0:
        return None
    value = float(medians[0] / medians[1])
    count = rounds.shape[1]
    if count < 2:
        return Ratio(value, None, None)
    drawn = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    resampled = np.median(rounds[:, drawn], axis=2)  # [2, RESAMPLES]
    resampled = resampled[:, resampled[1] > 0]
    low, high = np.percentile(resampled[0] / resampled[1], [2.5, 97.5])
    return Ratio(value, float(low), float(high))
