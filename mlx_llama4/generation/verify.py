"""Drafted tokens verified: one pass of the model over several of them.

    known      … t0            what the model chose last
    pass       t0 d1 d2 d3     d1 to d3 are drafted
    chosen     t1 t2 t3 t4     each as the plain decode would choose it, if what precedes is right
    kept       t1 t2           where d1 = t1, but d2 is not t2

So every token is the model's own choice; a draft only lets it choose several at once. What was
computed for the others is taken back: keys and values, tokens seen, random draws. With the same
seed the tokens of an answer are therefore those without drafts too, up to rounding. A sampler that
goes on to another answer may have drawn more than without: draws for tokens behind an end are not
taken back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_llama4.cache.kv import KVCache
from mlx_llama4.generation.choice import Choice, Chooser, Chosen, Mark, wait_for
from mlx_llama4.generation.drafting import Drafter
from mlx_llama4.model.llama4 import Llama4


@dataclass
class DraftStatistics:
    """Tokens that were drafted, and those of them that the model chose too."""

    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class _Pass:
    """draft: tokens after the first. choices: one for each token of the pass; marks: the chooser
    after each. start: tokens in the cache before it.
    """

    draft: Sequence[int]
    choices: Sequence[Choice]
    marks: Sequence[Mark]
    start: int


def decode_drafted(
    model: Llama4,
    logits: mx.array,
    cache: Sequence[KVCache],
    choose: Chooser,
    count: int,
    drafter: Drafter,
    statistics: DraftStatistics,
) -> Iterator[Chosen]:
    """`count` tokens, the same as `decode` gives.

    Where nothing can be drafted, the device is kept a token ahead as there. Whether something can
    be drafted after the next token is judged by whether it could be in the place of that token:
    only then does the host wait for it. While a token is yielded, what the cache holds beyond it
    can be taken back.
    """
    ahead = model.expert_statistics is None
    choice = choose(logits)
    upcoming = _Pass((), [choice], [choose.mark()], cache[0].offset - 1)
    choice.start()
    while count:
        current = upcoming
        if ahead and count > 1 and not current.draft and not drafter.propose(1):
            upcoming = _feed(model, current.choices[0].token, (), cache, choose)
            chosen = [wait_for(current.choices[0])]
            drafter.take(chosen[0].token)
            count -= 1
            yield chosen[0]
            continue
        chosen = _verified(current, cache, choose)
        statistics.drafted += len(current.draft)
        statistics.accepted += len(chosen) - 1
        for one in chosen:
            drafter.take(one.token)
        count -= len(chosen)
        yield from chosen[:-1]
        if count and ahead:
            upcoming = _next(model, cache, choose, count, drafter, chosen[-1].token)
        yield chosen[-1]
        if count and not ahead:
            upcoming = _next(model, cache, choose, count, drafter, chosen[-1].token)


def _next(
    model: Llama4,
    cache: Sequence[KVCache],
    choose: Chooser,
    count: int,
    drafter: Drafter,
    token: int,
) -> _Pass:
    # The token itself and what is drafted; each of them gives one.
    room = min(layer.reversible(count) for layer in cache)
    draft = drafter.propose(room - 1) if room > 1 else ()
    return _feed(model, mx.array([token]), draft, cache, choose)


def _feed(
    model: Llama4,
    token: mx.array,
    draft: Sequence[int],
    cache: Sequence[KVCache],
    choose: Chooser,
) -> _Pass:
    start = cache[0].offset
    ids = token[:, None]
    if draft:
        ids = mx.concatenate([ids, mx.array([draft], ids.dtype)], axis=1)
    logits = model(ids, cache)
    choices, marks = [], []
    for index in range(ids.shape[1]):
        # Each as if all before it were right: of the others nothing is kept.
        choices.append(choose(logits[:, index]))
        marks.append(choose.mark())
    mx.async_eval(choices)
    return _Pass(draft, choices, marks, start)


def _verified(passed: _Pass, cache: Sequence[KVCache], choose: Chooser) -> list[Chosen]:
    """The tokens that the model chose, up to the first that was not drafted; the rest is undone."""
    chosen: list[Chosen] = []
    for index, choice in enumerate(passed.choices):
        chosen.append(wait_for(choice))
        if index == len(passed.draft) or chosen[-1].token != passed.draft[index]:
            break
    if len(chosen) < len(passed.choices):
        choose.take_back(passed.marks[len(chosen) - 1])
        for layer in cache:
            layer.rewind(passed.start + len(chosen))
    return chosen
