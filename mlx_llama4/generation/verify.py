"""Verify drafted tokens: one pass of the model over several of them.

    known      … t0            the model's last choice
    pass       t0 d1 d2 d3     d1 to d3 are drafted
    chosen     t1 t2 t3 t4     each as plain decoding would choose it, if all before it are right
    kept       t1 t2           if d1 = t1 but d2 ≠ t2

So every token is the model's own choice; a draft only lets it choose several at once. For tokens
that are not kept, everything is undone: keys and values, tokens seen, random draws. With the same
seed, an answer therefore has the same tokens as without drafts, up to rounding. A sampler shared
with a later answer may have advanced further, because draws for tokens after the end of an answer
are not undone.
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
    """How well drafting worked, in tokens."""

    drafted: int = 0
    accepted: int = 0  # drafted tokens that the model chose too


@dataclass(frozen=True)
class _Pass:
    """One pass of the model over a token and its draft."""

    draft: Sequence[int]  # tokens after the first
    choices: Sequence[Choice]  # one for each token of the pass
    marks: Sequence[Mark]  # the chooser's state after each choice
    start: int  # tokens in the cache before the pass


def decode_drafted(
    model: Llama4,
    logits: mx.array,
    cache: Sequence[KVCache],
    choose: Chooser,
    count: int,
    drafter: Drafter,
    statistics: DraftStatistics,
) -> Iterator[Chosen]:
    """Yield `count` tokens, the same as `decode` yields.

    While nothing can be drafted, the device is kept a token ahead, as in `decode`. The host waits
    for a token only if a draft seems possible after it, and the sign for that is a draft in its
    own place. While a token is yielded, whatever the cache holds beyond it can be undone.
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
    # A pass is the token itself and its draft; each of them yields a token.
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
        # Choose each as if all before it were right; if they are not, the choice is dropped.
        choices.append(choose(logits[:, index]))
        marks.append(choose.mark())
    mx.async_eval(choices)
    return _Pass(draft, choices, marks, start)


def _verified(passed: _Pass, cache: Sequence[KVCache], choose: Chooser) -> list[Chosen]:
    """Return the tokens that the model chose, up to the first that differs from the draft.

    The rest of the pass is undone.
    """
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
