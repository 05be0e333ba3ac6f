"""A `Batch` led step by step, as a server does it: prompts are read in turns with answers."""

import errno
import os
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_llama4.errors import InputError, Llama4Error, PromptError, RunError
from mlx_llama4.generation.batch import Batch, Request
from mlx_llama4.generation.generate import Step
from mlx_llama4.generation.prefill import prefill, prefill_spans
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.prompt.prompt import Prompt
from tests.generation.batches import (
    ENDS,
    TEXTS,
    Results,
    assert_same,
    at_most,
    eight,
    run_alone,
)
from tests.prompts import Letters, picture, words
from tests.small_model import CHUNK, model_of
from tests.streamed import ONE, folder, load_streamed


def run(batch: Batch) -> Results:
    results: Results = {}
    while batch.is_busy:
        for number, event in batch.step():
            results.setdefault(number, []).append(event)
    return results


@pytest.mark.parametrize("preset", ["scout", "maverick"])
@pytest.mark.parametrize("whole", [False, True])
def test_rows_are_those_of_their_own_runs(preset: str, whole: bool) -> None:
    """Whether prompts are read whole or a span a step, while others write."""
    model = model_of(preset)
    batch = Batch(model, Letters(ENDS), batch_size=3, prefill_step=CHUNK // 2)
    assert [batch.add(request) for request in eight()] == list(range(8))
    results: Results = {}
    while batch.is_busy:
        for number, event in [*(batch.read_prompts() if whole else []), *batch.step()]:
            results.setdefault(number, []).append(event)
    assert sorted(results) == list(range(8))
    for number, request in enumerate(eight()):
        assert_same(results[number], run_alone(model, request))


def test_a_long_prompt_holds_nobody_up() -> None:
    """A span of it and a token of each other row a step."""
    model, read = model_of("scout"), []
    short, long = words(0, 5), words(1, 6 * CHUNK)
    batch = Batch(model, Letters(), prefill_step=CHUNK)
    batch.add(Request(short.prompt, at_most(20)))
    assert [number for number, _ in batch.step()] == [0]
    batch.add(Request(long.prompt, at_most(3), on_prefill=lambda *span: read.append(span)))
    for spans in range(1, 6):
        assert [number for number, _ in batch.step()] == [0]
        assert read == [(n * CHUNK, 6 * CHUNK) for n in range(1, spans + 1)]
    assert [number for number, _ in batch.step()] == [0, 1]


def test_room_and_what_is_left() -> None:
    batch = Batch(model_of("scout"), Letters(), batch_size=2)
    assert batch.has_room and not batch.is_busy and batch.step() == []
    batch.add(Request(words(0, 3).prompt, at_most(1)))
    assert batch.has_room and batch.is_busy
    batch.add(Request(words(1, 3).prompt, at_most(2)))
    third = batch.add(Request(words(2, 3).prompt, at_most(1)))
    assert not batch.has_room
    assert [number for number, _ in batch.step()] == [0]  # the second is not read yet
    assert [number for number, _ in batch.step()] == [1]
    assert [number for number, _ in batch.step()] == [1, third]
    assert not batch.is_busy and batch.has_room
    with pytest.raises(InputError, match="batch size 0"):
        Batch(model_of("scout"), Letters(), batch_size=0)


def test_cancelled_rows_come_no_more() -> None:
    """While one waits, one is read and one writes."""
    model = model_of("scout")
    requests = [
        Request(words(0, 4).prompt, at_most(9)),
        Request(words(1, 9 * CHUNK).prompt, at_most(9), cache=model.make_cache()),
        Request(words(2, 4).prompt, at_most(2)),
        Request(words(3, 4).prompt, at_most(2)),
    ]
    batch = Batch(model, Letters(), prefill_step=CHUNK)
    batch.add(requests[0])
    batch.step()
    numbers = [batch.add(request) for request in requests[1:]]
    batch.step()
    for number in (0, numbers[0], numbers[1], 99):
        batch.cancel(number)
    results = run(batch)
    assert list(results) == [numbers[2]]
    assert_same(results[numbers[2]], run_alone_of(model, requests[3]))
    assert requests[1].cache[0].offset == CHUNK


def run_alone_of(model, request: Request) -> list[Step]:
    """Without end tokens, as the rows of these tests."""
    batch = Batch(model, Letters())
    batch.add(Request(request.prompt, request.settings))
    return run(batch)[0]


def test_one_row_s_error_is_its_own() -> None:
    model, good = model_of("scout"), words(0, 7)
    shown = picture(1)
    batch = Batch(model, Letters(ENDS))
    for request in (
        Request(Prompt(shown.prompt.ids), at_most(5)),  # without its picture
        Request(good.prompt, at_most(6)),
        Request(good.prompt, GenerationSettings(temperature=-1.0)),
        Request(good.prompt, GenerationSettings(draft=lambda ids: None)),
    ):
        batch.add(request)
    results = run(batch)
    kinds = {number: type(events[0]) for number, events in results.items() if number != 1}
    assert kinds == {0: PromptError, 2: InputError, 3: InputError}
    assert all(len(results[number]) == 1 for number in kinds)
    assert "without drafts" in str(results[3][0])
    assert_same(results[1], run_alone(model, Request(good.prompt, at_most(6))))


def test_streamed_experts_are_read_after_tokens_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a disk that fails takes no token with it, and one row ends without a read."""
    model = load_streamed(folder(tmp_path, "maverick", None), ONE)
    batch = Batch(model, Letters())
    batch.add(Request(words(0, 6).prompt, at_most(3)))
    batch.step()
    before = model.expert_statistics.read_backs
    ((_, step),) = batch.step()
    assert isinstance(step, Step) and model.expert_statistics.read_backs > before

    def failing(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(RunError, match="Input/output error") as failure:
        batch.step()
    assert isinstance(failure.value, Llama4Error)


def test_prefill_is_its_spans() -> None:
    model, prompt = model_of("maverick"), words(0, 3 * CHUNK + 5).prompt
    spans, told = prefill_spans(model, prompt, model.make_cache(), span=CHUNK), []
    while True:
        try:
            told.append(next(spans))
        except StopIteration as end:
            logits = end.value
            break
    total = len(prompt.ids)
    assert told == [(CHUNK, total), (2 * CHUNK, total), (3 * CHUNK, total)]
    assert bool(mx.array_equal(logits, prefill(model, prompt, model.make_cache(), span=CHUNK)))


def test_the_longest_of_many_texts_is_read_in_turns() -> None:
    """All of the texts at once, any order: each row's tokens stay its own."""
    model = model_of("maverick")
    batch = Batch(model, Letters(ENDS), batch_size=8, prefill_step=3)
    for text in reversed(TEXTS):
        batch.add(Request(text.prompt, at_most(12)))
    results = run(batch)
    for number, text in enumerate(reversed(TEXTS)):
        assert_same(results[number], run_alone(model, Request(text.prompt, at_most(12))))
