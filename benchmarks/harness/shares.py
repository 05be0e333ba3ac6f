"""A share of right answers, and its confidence interval."""

import math
from dataclasses import dataclass

Z = 1.959964  # of 95%, two-sided


@dataclass(frozen=True)
class Share:
    right: int
    asked: int

    def __str__(self) -> str:
        return f"{self.right}/{self.asked}"

    @property
    def value(self) -> float:
        return self.right / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval, which holds near 0 and 1 and for few questions as well."""
        n, share = self.asked, self.value
        centre = share + Z * Z / (2 * n)
        half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
        scale = 1 + Z * Z / n
        return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def total(shares: list[Share]) -> Share:
    return Share(sum(share.right for share in shares), sum(share.asked for share in shares))
