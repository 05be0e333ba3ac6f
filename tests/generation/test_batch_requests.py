"""Requests of a batch: how they come, join, leave, fail, and what is told of them."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.errors import ImageError, InputError, PromptError
from mlx_llama4.generation.batch import Request, generate_batch
from mlx_llama4.generation.generate import Statistics
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.prompt import Prompt
from tests.generation.batches import assert_same, at_most, eight, run_all, run_alone
from tests.prompts import FixedImage, Letters, picture, words
from tests.small_model import model_of


def test_statistics_are_the_row_s() -> None:
    model = model_of("scout")
    requests = [replace_statistics(request) for request in eight()[-2:]]
    results = run_all(model, requests)
    for number, request in enumerate(requests):
        found, steps = request.statistics, results[number]
        assert found.prompt_tokens == len(request.prompt.ids)
        assert found.image_tiles == request.prompt.num_tiles > 0
        assert found.generated_tokens == len(steps)
        assert found.finish_reason == steps[-1].finish_reason is not None
        assert found.steps == steps
        assert found.decode_tokens_per_second > 0 < found.time_to_first_token


def replace_statistics(request: Request) -> Request:
    settings = replace(request.settings, logprobs=1)
    return replace(request, settings=settings, statistics=Statistics())


def test_requests_are_asked_for_as_there_is_room() -> None:
    """And their prompts are read then: what waits takes no memory."""
    model, taken = model_of("scout"), []

    def arriving() -> Iterator[Request]:
        for number in range(5):
            taken.append(number)
            yield Request(words(number, 4).prompt, at_most(3))

    steps = generate_batch(model, Letters(), arriving(), batch_size=2)
    assert taken == []
    assert [next(steps)[0] for _ in range(4)] == [0, 1, 0, 1]
    assert taken == [0, 1]
    assert [next(steps)[0] for _ in range(4)] == [0, 1, 2, 3]
    assert taken == [0, 1, 2, 3]
    steps.close()
    assert taken == [0, 1, 2, 3]


def test_none_is_there_just_now() -> None:
    model = model_of("scout")
    requests = [
        None,
        Request(words(0, 4).prompt, at_most(4)),
        None,
        Request(words(1, 4).prompt, at_most(2)),
        None,
    ]
    order = [number for number, _ in generate_batch(model, Letters(), requests)]
    assert order == [0, 0, 1, 0, 1, 0]


def test_cancelled_rows_leave(row_counts: list[int]) -> None:
    """At once, also when another's step is being shown; the last one ends the batch."""
    model = model_of("scout")
    requests = [
        Request(words(n, 5).prompt, at_most(10), cache=model.make_cache()) for n in range(4)
    ]
    requests[3].cancel()  # before it joins
    order = []
    for number, _ in generate_batch(model, Letters(), requests):
        order.append(number)
        if len(order) == 4:  # of the second step, the first row's
            requests[0].cancel()
            requests[1].cancel()
        if len(order) == 6:
            requests[2].cancel()
    assert order == [0, 1, 2, 0, 2, 2]
    assert row_counts[:2] == [3, 3] and max(row_counts[2:]) == 1
    assert requests[3].cache[0].offset == 0
    cache = PromptCache(requests[1].cache)  # one token was fed that never came
    cache.record(np.array([*words(1, 5).ids, 0], np.int32), ())
    assert {layer.offset for layer in cache.layers} == {6}


class Unreadable(FixedImage):
    def pixel_values(self) -> np.ndarray:
        raise ImageError("broken.png cannot be read")


def test_what_cannot_begin_stops_nothing_else() -> None:
    model = model_of("scout")
    shown = picture(1)
    broken = tuple(Unreadable(i.table[:, 0] * 0, i.grid, i.size, i.table) for i in shown.images)
    broken[0].digest  # noqa: B018 — as of any picture
    good = eight()[:2]
    requests = [
        Request(Prompt(np.zeros(0, np.int32)), at_most(5)),
        good[0],
        Request(Prompt(shown.prompt.ids, broken), at_most(5)),
        Request(Prompt(shown.prompt.ids), at_most(5)),
        Request(words(0, 3).prompt, at_most(0)),
        Request(words(0, 3).prompt, GenerationSettings(max_tokens=5, stop=("",))),
        good[1],
    ]
    for batch_size in (1, 3):
        results = run_all(model, requests, batch_size)
        assert {n: str(results[n][0]) for n in (0, 2, 4)} == {
            0: "the prompt is empty",
            2: "broken.png cannot be read",
            4: "max_tokens 0 must be 1 or more",
        }
        kinds = [type(results[number][0]) for number in (0, 2, 3, 4, 5)]
        assert kinds == [PromptError, ImageError, PromptError, InputError, InputError]
        assert all(len(results[number]) == 1 for number in (0, 2, 3, 4, 5))
        for number, request in ((1, good[0]), (6, good[1])):
            assert_same(results[number], run_alone(model, request))


def test_a_prompt_longer_than_the_context() -> None:
    model = model_of("scout")
    config = model.config
    text = replace(config.text, max_position_embeddings=20)
    small = Llama4(replace(config, text=text))
    small.language_model = model.language_model
    results = run_all(
        small,
        [Request(words(0, 18).prompt, at_most(9)), Request(words(1, 20).prompt, at_most(9))],
        end_tokens=(),
    )
    assert [step.finish_reason for step in results[0]] == [None, "length"]
    assert "this model's context holds 20" in str(results[1][0])


def test_nothing_to_do_and_no_room_to_do_it() -> None:
    assert run_all(model_of("scout"), []) == {}
    with pytest.raises(InputError, match="batch size 0 must be 1 or more"):
        run_all(model_of("scout"), eight(), batch_size=0)
