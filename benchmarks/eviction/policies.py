"""Policies that decide which experts a bank of slots keeps, simulated on recorded choices.

For each forward pass, a bank is told the experts that its tokens use, in order, and counts those it
held. A prompt's pass needs all of its experts; of these and those it held, the bank then keeps the
ones its policy likes best. Experts are numbers; their meaning is up to the caller.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

FARTHEST = math.inf


class Bank(Protocol):
    def use(self, experts: Sequence[int]) -> int:
        """Count the experts of a pass that were held, then take in the others or not."""
        ...


class LeastRecentlyUsed:
    """Keeps the experts used last."""

    def __init__(self, slots: int):
        self._slots = slots
        self._held: OrderedDict[int, None] = OrderedDict()

    def use(self, experts: Sequence[int]) -> int:
        hits = sum(expert in self._held for expert in experts)
        for expert in experts:
            self._held[expert] = None
            self._held.move_to_end(expert)
            if len(self._held) > self._slots:
                self._held.popitem(last=False)
        return hits


class LeastFrequentlyUsed:
    """Keeps the experts used most often; a use counts half as much after `half_life` tokens.

    heat: scores at the start, where a use by the first token counts 1. only_hotter: an expert that
    was missed takes a slot only if one that is held has a lower score.
    """

    def __init__(
        self,
        slots: int,
        half_life: float,
        per_token: int = 1,
        heat: Mapping[int, float] | None = None,
        only_hotter: bool = False,
    ):
        self._slots = slots
        self._growth = 2 ** (1 / (half_life * per_token))
        self._only_hotter = only_hotter
        # Scores do not shrink with every use; instead each use counts more than the one before.
        self._weight = 1.0
        self._scores: dict[int, float] = dict(heat or {})
        self._held = set(self._hottest(self._scores))

    def use(self, experts: Sequence[int]) -> int:
        hits = sum(expert in self._held for expert in experts)
        for expert in experts:
            self._weight *= self._growth
            self._scores[expert] = self._scores.get(expert, 0.0) + self._weight
        if self._weight > 1e100:
            self._scores, self._weight = self.heat(), 1.0
        if len(self._held | set(experts)) > self._slots:
            self._evict(experts)
        else:
            self._held.update(experts)
        return hits

    def heat(self) -> dict[int, float]:
        """The scores, where a use by the last token counts 1."""
        return {expert: score / self._weight for expert, score in self._scores.items()}

    def _evict(self, experts: Sequence[int]) -> None:
        new = set(experts)
        if self._only_hotter or len(new) > self._slots:
            self._held = set(self._hottest(self._held | new))
        else:
            rest = self._hottest(self._held - new)
            self._held = new | set(rest[: self._slots - len(new)])

    def _hottest(self, experts: Iterable[int]) -> list[int]:
        return sorted(experts, key=lambda expert: (-self._scores[expert], expert))[: self._slots]


class Pinned:
    """Keeps the experts used most often elsewhere, for ever."""

    def __init__(self, slots: int, uses: Counter[int]):
        self._held = {expert for expert, _ in uses.most_common(slots)}

    def use(self, experts: Sequence[int]) -> int:
        return sum(expert in self._held for expert in experts)


class Optimum:
    """Belady's: keeps the experts that are used again soonest, which needs the future.

    No bank with as many slots has more hits. If a prompt needs an expert before a generated token
    does, keeping it gains nothing, since the prompt reads it anyway.
    """

    def __init__(self, slots: int, passes: Sequence[tuple[Sequence[int], bool]]):
        """passes: experts of all passes to come, and whether their hits count."""
        self._slots = slots
        self._next = _next_counted_uses(passes)
        self._now = 0
        self._held: dict[int, float] = {}  # expert → pass of its next use

    def use(self, experts: Sequence[int]) -> int:
        hits = sum(expert in self._held for expert in experts)
        for expert, following in self._next[self._now].items():
            self._held[expert] = following
            if following == FARTHEST:
                del self._held[expert]
        self._now += 1
        if len(self._held) > self._slots:
            soonest = sorted(self._held.items(), key=lambda item: item[1])
            self._held = dict(soonest[: self._slots])
        return hits


def _next_counted_uses(
    passes: Sequence[tuple[Sequence[int], bool]],
) -> list[dict[int, float]]:
    """For each pass, expert → the next pass that uses it if that one counts, else FARTHEST."""
    following: dict[int, float] = {}
    found: list[dict[int, float]] = []
    for number in range(len(passes) - 1, -1, -1):
        experts, counts = passes[number]
        found.append({expert: following.get(expert, FARTHEST) for expert in experts})
        following.update(dict.fromkeys(experts, number if counts else FARTHEST))
    return found[::-1]
