"""The ratio of two engines' medians, and how far chance alone could move it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Ratio:
    """The median of ours over the median of a peer."""

    value: float
    low: float | None  # of a 95% interval; None if there was a single round
    high: float | None


def ratio_of_medians(ours: Sequence[float], peer: Sequence[float], seed: int = 0) -> Ratio | None:
    """Entry i of both lists is round i. Returns None if the peer's median is not above zero.

    The interval is a percentile bootstrap: it draws rounds with replacement and keeps both
    engines' figures of a round together, so a slow minute of the machine counts for both. With few
    rounds it is too narrow: it cannot reach beyond the ratios that were seen.
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
