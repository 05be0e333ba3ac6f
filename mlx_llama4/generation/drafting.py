"""Guesses at the tokens to come, which one pass of the model then verifies (verify.py).

Knows ids and no model.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

SHORTEST = 3  # tokens of a match; fewer match nearly everything
LONGEST = 16  # of a match, and so of a draft
CANDIDATES = 16  # earlier places that are compared: bounds what a token costs


class Drafter(Protocol):
    """For one answer. It is told every token of it, in order, and asked for those that follow.

    A head that drafts from the model's hidden states (EAGLE-3) fits in here: made with the model,
    it would be told those beside the token, and `decode_drafted` is where they pass.
    """

    def take(self, token: int) -> None:
        """The next token of the answer."""

    def propose(self, most: int) -> Sequence[int]:
        """At most so many tokens that may follow; none if there is nothing to go by. It may be
        asked several times, or not at all, between tokens.
        """


# Called with the prompt's ids, int32 [L].
MakeDrafter = Callable[[np.ndarray], Drafter]


class NgramDrafter:
    """What followed when the last tokens came before, in the prompt or in the answer.

    Of the latest places where the last three tokens stood, the one that agrees with the most
    tokens before them counts: prompt lookup, github.com/apoorvumang/prompt-lookup-decoding. A
    draft is as long as its match: what agrees for long goes on so for longer, and a wrong guess
    costs its part of a pass.
    A token costs the same however long the prompt is.
    """

    def __init__(self, prompt: np.ndarray):
        """prompt: ids int [L]."""
        self._ids: list[int] = prompt.tolist()
        # By position: the last one before at which the same SHORTEST tokens end; -1: none.
        self._before, self._latest = _indexed(prompt, SHORTEST)

    def take(self, token: int) -> None:
        self._ids.append(token)
        key = tuple(self._ids[-SHORTEST:])
        position = len(self._ids) - 1
        self._before.append(self._latest.get(key, -1))
        if len(key) == SHORTEST:
            self._latest[key] = position

    def propose(self, most: int) -> list[int]:
        place, length = self._longest_match()
        most = min(most, length)
        draft = self._ids[place + 1 : place + 1 + most]
        # What is being repeated may overlap with its repetition.
        period = len(self._ids) - 1 - place
        while len(draft) < most:
            draft.append(draft[-period])
        return draft

    def _longest_match(self) -> tuple[int, int]:
        """Where it ends, of several the latest, and its length, which is 0 if there is none."""
        best, best_length = -1, 0
        place = self._before[-1] if self._before else -1
        for _ in range(CANDIDATES):
            if place < 0 or best_length == LONGEST:
                break
            if (length := self._agreeing(place)) > best_length:
                best, best_length = place, length
            place = self._before[place]
        return best, best_length

    def _agreeing(self, place: int) -> int:
        """How many tokens up to `place` are the same as the last ones, up to the longest match."""
        ids, end = self._ids, len(self._ids) - 1
        length = SHORTEST
        most = min(LONGEST, place + 1)
        while length < most and ids[place - length] == ids[end - length]:
            length += 1
        return length


def _indexed(ids: np.ndarray, length: int) -> tuple[list[int], dict[tuple[int, ...], int]]:
    """For each position the last before at which the same `length` tokens end, or -1; and the last
    position of all for each such run of tokens.
    """
    if len(ids) < length:
        return [-1] * len(ids), {}
    runs = np.lib.stride_tricks.sliding_window_view(ids, length)
    order = np.lexsort(runs.T)  # stable: equal runs stay in the order of their positions
    same = (runs[order[1:]] == runs[order[:-1]]).all(axis=1)
    before = np.full(len(ids), -1)
    before[order[1:][same] + length - 1] = order[:-1][same] + length - 1
    columns = [ids[start : len(ids) - length + 1 + start].tolist() for start in range(length)]
    latest = dict(zip(zip(*columns, strict=True), range(length - 1, len(ids)), strict=True))
    return before.tolist(), latest
