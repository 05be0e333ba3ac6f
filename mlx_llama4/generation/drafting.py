"""Guess the next tokens, which one pass of the model then verifies (verify.py).

Knows token ids, but no model.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

SHORTEST = 3  # tokens in a match; fewer would match nearly everything
LONGEST = 16  # tokens in a match, and so in a draft
CANDIDATES = 16  # earlier places to compare with; bounds the cost of a token


class Drafter(Protocol):
    """Drafts the tokens of one answer: it is given each token in order, and asked what follows.

    A head that drafts from the model's hidden states (EAGLE-3) would fit in here: `decode_drafted`
    would pass it those states with each token.
    """

    def take(self, token: int) -> None:
        """Take in the next token of the answer."""

    def propose(self, most: int) -> Sequence[int]:
        """Return at most `most` likely next tokens, or none if there is nothing to go by.

        It may be called several times between two tokens, or not at all.
        """


# Called with the prompt's ids, int32 [L].
MakeDrafter = Callable[[np.ndarray], Drafter]


class NgramDrafter:
    """Proposes what followed the last tokens when they appeared before, in prompt or answer.

    It compares the latest places where the last three tokens appeared, and picks the one with the
    longest match (prompt lookup, github.com/apoorvumang/prompt-lookup-decoding). A draft is as long
    as its match: longer matches are more likely to continue, and a wrong guess costs its share of a
    pass. The cost of a token does not depend on the prompt's length.
    """

    def __init__(self, prompt: np.ndarray):
        """prompt: ids int [L]."""
        self._ids: list[int] = prompt.tolist()
        # For each position, the last earlier one where the same SHORTEST tokens end; -1: none.
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
        # The repeated text may overlap with its repetition.
        period = len(self._ids) - 1 - place
        while len(draft) < most:
            draft.append(draft[-period])
        return draft

    def _longest_match(self) -> tuple[int, int]:
        """Where the longest match ends (the latest of equals), and its length: 0 if none."""
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
        """How many tokens up to `place` equal the last ones, at most LONGEST."""
        ids, end = self._ids, len(self._ids) - 1
        length = SHORTEST
        most = min(LONGEST, place + 1)
        while length < most and ids[place - length] == ids[end - length]:
            length += 1
        return length


def _indexed(ids: np.ndarray, length: int) -> tuple[list[int], dict[tuple[int, ...], int]]:
    """For each position, the last earlier one where the same `length` tokens end, or -1; and for
    each run of `length` tokens, the last position where it ends.
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
