"""Batches in which something fails: what is one row's ends that row, what is everybody's ends all,
and no token that came before is lost or wrong.
"""

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_llama4.errors import InputError, RunError
from mlx_llama4.generation import rows
from mlx_llama4.generation.batch import Request, generate_batch
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.model.llama4 import Llama4
from tests.generation.batches import ENDS, Results, assert_same, at_most, run_all, run_alone
from tests.prompts import Letters, words
from tests.small_model import CHUNK, model_of
from tests.streamed import ONE, folder, load_streamed


def until_failure(
    model: Llama4, requests: Iterator[Request] | list[Request], kind: type[Exception]
) -> tuple[Results, Exception]:
    """What came before an exception ended the batch, and that."""
    results: Results = {}
    steps = generate_batch(model, Letters(ENDS), requests)
    with pytest.raises(kind) as failure:
        for number, step in steps:
            results.setdefault(number, []).append(step)
    assert next(steps, None) is None
    return results, failure.value


class Disk:
    """Stands for os.preadv."""

    def __init__(self) -> None:
        self.is_broken, self.read = False, os.preadv

    def __call__(self, *arguments: object) -> int:
        if self.is_broken:
            raise OSError(errno.EIO, "Input/output error")
        return self.read(*arguments)


def test_a_failing_disk_ends_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a prompt is read and others go on, and in the middle of answers."""
    model, disk = load_streamed(folder(tmp_path, "maverick", None), ONE), Disk()
    texts = [words(n, 4 + n).prompt for n in range(3)]
    alone = [run_alone(model, Request(text, at_most(8))) for text in texts]
    monkeypatch.setattr(os, "preadv", disk)

    def arriving(fails_in_prompt: bool) -> Iterator[Request | None]:
        yield from (Request(text, at_most(8)) for text in texts[:2])
        yield from (None, None)
        disk.is_broken = True
        yield Request(texts[2], at_most(8)) if fails_in_prompt else None

    for fails_in_prompt, count in ((True, 2), (False, 3)):
        results, failure = until_failure(model, arriving(fails_in_prompt), RunError)
        assert "Input/output error" in str(failure)
        assert sorted(results) == [0, 1]
        for number, steps in results.items():
            assert_same(steps, alone[number][:count])
        disk.is_broken = False
    results = run_all(model, (Request(text, at_most(8)) for text in texts))
    assert len(results) == 3
    for number, steps in results.items():
        assert_same(steps, alone[number])


class Schema:
    """Stands for a grammar and its matcher: allows everything, until it fails."""

    def __init__(self, allowed: int = 100, accepted: int = 100):
        self.allowed_left, self.accepted_left = allowed, accepted

    def start(self) -> "Schema":
        return self

    def allowed(self) -> mx.array:
        self.allowed_left -= 1
        if self.allowed_left < 0:
            raise RunError("cannot follow the schema")
        return mx.array([True])

    def accept(self, token: int) -> None:
        self.accepted_left -= 1
        if self.accepted_left < 0:
            raise RunError("the logit bias forbids every token")


def test_a_row_s_last_token_comes_before_its_error() -> None:
    model = model_of("scout")
    text = words(0, 5)
    alone = run_alone(model, Request(text.prompt, at_most(9)))
    grammars = (Schema(allowed=3), None, Schema(accepted=2), Schema(allowed=0))
    requests = [
        Request(text.prompt, GenerationSettings(max_tokens=9, grammar=grammar))
        for grammar in grammars
    ]
    results = run_all(model, requests)
    for number, count in ((0, 3), (2, 2), (3, 0)):
        *steps, failure = results[number]
        assert isinstance(failure, RunError) and len(steps) == count
        assert_same(steps, alone[:count]) if steps else None
    assert_same(results[1], alone)


def test_cancelled_while_the_prompt_is_read() -> None:
    """What is left of it is not; the row before goes on, the one behind joins."""
    model, told = model_of("scout"), []
    good = [Request(words(n, 5).prompt, at_most(6)) for n in range(2)]
    alone = [run_alone(model, request) for request in good]

    def on_prefill(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 2:
            going.cancel()

    long = words(0, 8 * CHUNK).prompt
    going = Request(long, at_most(6), cache=model.make_cache(), on_prefill=on_prefill)
    results = run_all(model, [good[0], going, good[1]], prefill_step=CHUNK)
    assert told == [(CHUNK, 8 * CHUNK), (2 * CHUNK, 8 * CHUNK)]
    assert {layer.offset for layer in going.cache} == {2 * CHUNK}
    assert list(results) == [0, 2]
    assert_same(results[0], alone[0])
    assert_same(results[2], alone[1])


def test_what_requests_raises_ends_the_batch() -> None:
    model = model_of("scout")
    alone = run_alone(model, Request(words(0, 5).prompt, at_most(9)))

    def arriving() -> Iterator[Request | None]:
        yield Request(words(0, 5).prompt, at_most(9))
        yield None
        raise ZeroDivisionError

    results, _ = until_failure(model, arriving(), ZeroDivisionError)
    assert_same(results[0], alone[:1])


def test_a_cache_that_holds_the_whole_prompt_is_its_row_s_error() -> None:
    model, text = model_of("scout"), words(0, 6).prompt
    cache = model.make_cache()
    mx.eval(model(mx.array(text.ids)[None], cache))
    results = run_all(
        model, [Request(words(1, 5).prompt, at_most(3)), Request(text, at_most(3), cache=cache)]
    )
    assert len(results[0]) == 3
    assert str(results[1][0]) == "the cache holds 6 tokens, the prompt has only 6"


def test_an_error_that_is_kept_holds_nothing_else() -> None:
    """A traceback would: the frames of the batch, and in them all rows."""
    model = model_of("scout")
    results = run_all(
        model, [Request(words(0, 5).prompt, at_most(0)), Request(words(1, 5).prompt, at_most(2))]
    )
    assert isinstance(results[0][0], InputError)
    assert results[0][0].__traceback__ is None


def test_a_prompt_s_rate_counts_its_own_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of those who join before its first token. Each look at the clock takes a second."""
    monkeypatch.setattr(rows.time, "perf_counter", itertools.count().__next__)
    requests = [Request(words(n, 5 + n).prompt, at_most(3)) for n in range(3)]
    run_all(model_of("scout"), requests)
    assert [r.statistics.prefill_tokens_per_second for r in requests] == [5, 6, 7]
