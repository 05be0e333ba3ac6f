"""Which experts a bank of slots keeps: ways to decide it, simulated on recorded choices.

A bank is told of each forward pass which experts its tokens use, in order, and counts which of
them it held. A prompt's pass needs all of its experts; the bank then keeps what the policy likes
best of them and of those it held. Experts are numbers; what they are numbers of is the caller's.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

FARTHEST = math.inf


class Bank(Protocol):
    def use(self, experts: Sequence[int]) -> int:
        """How many of the experts of a pass were held; then take them in, or do not."""
        ...


class LeastRecentlyUsed:
    """The experts used last."""

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
    """The experts used most often, where a use counts half as much after `half_life` tokens.

    heat: scores to begin with, a use of the first token counting 1. only_hotter: does an expert
    that was missed pass through if all that are held have higher scores, rather than take a slot.
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
        # Instead of all scores shrinking with every use, what a use counts grows.
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
        """The scores, a use of the last token counting 1."""
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
    """The experts used most often on another occasion, for ever."""

    def __init__(self, slots: int, uses: Counter[int]):
        self._held = {expert for expert, _ in uses.most_common(slots)}

    def use(self, experts: Sequence[int]) -> int:
        return sum(expert in self._held for expert in experts)


class Optimum:
    """Belady's: the experts that are used again soonest, as nobody can know beforehand.

    No bank of so many slots has more hits. Of an expert that a prompt needs before a generated
    token does, the use does not count, since the prompt reads it anyway.
    """

    def __init__(self, slots: int, passes: Sequence[tuple[Sequence[int], bool]]):
        """passes: all that will be used, with whether its hits count."""
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
    """For each pass, expert → the pass that uses it next, if that one counts, else FARTHEST."""
    following: dict[int, float] = {}
    found: list[dict[int, float]] = []
    for number in range(len(passes) - 1, -1, -1):
        experts, counts = passes[number]
        found.append({expert: following.get(expert, FARTHEST) for expert in experts})
        following.update(dict.fromkeys(experts, number if counts else FARTHEST))
    return found[::-1]
