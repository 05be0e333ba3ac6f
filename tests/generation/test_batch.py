"""Prompts that are gone on with together: each row's tokens are those of its own run.

Rows of one pass may be summed in another order than a row alone, so what is compared are tokens,
where the likeliest is ahead of the next by far more than rounding.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_llama4.cache.kv import KVCache
from mlx_llama4.cache.row_caches import RowCaches, decoded_together
from mlx_llama4.generation.batch import Request, generate_batch
from mlx_llama4.generation.generate import Step, stream_generate
from mlx_llama4.generation.prefill import prefill
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.prompt import Prompt
from mlx_llama4.quantization import KVQuantization
from tests.generation.batches import (
    ENDS,
    LEAST_GAP,
    TEXTS,
    assert_same,
    at_most,
    eight,
    run_all,
    run_alone,
)
from tests.generation.waits import recorded_waits
from tests.golden import cases
from tests.prompts import Letters, Text, picture, words
from tests.proofs import scaled
from tests.small_model import CHUNK, DENSE, model_of
from tests.streamed import ONE, SOME, folder, load_streamed
from tests.tolerance import tolerance


@pytest.mark.parametrize("preset", ["scout", "maverick"])
def test_eight_unequal_rows(preset: str, row_counts: list[int]) -> None:
    model = model_of(preset)
    alone = [run_alone(model, request) for request in eight()]
    assert len({len(steps) for steps in alone}) > 4  # they end at different times
    crossed = [CHUNK - len(text.ids) % CHUNK for text in TEXTS]
    assert len(set(crossed)) > 4  # and go over borders at different times
    for batch_size in (8, 3):
        row_counts.clear()
        results = run_all(model, eight(), batch_size)
        for number, steps in enumerate(alone):
            assert_same(results[number], steps)
        assert max(row_counts) == batch_size
        assert min(row_counts) < batch_size or batch_size == 3
        # A token is fed for all but the last of each row, or also the last if it ends the row.
        fed = [len(steps) - (steps[-1].finish_reason == "length") for steps in alone]
        assert sum(row_counts) == sum(fed)


def rows_are_right(preset: str, texts: list[Text], data: st.DataObject) -> None:
    """Any lengths, joining and leaving at any time, some cancelled."""
    model = model_of(preset)
    most = [data.draw(st.integers(1, 3 * CHUNK)) for _ in texts]
    stops = [data.draw(st.none() | st.integers(0, 2 * CHUNK)) for _ in texts]
    pauses = [data.draw(st.integers(0, 2)) for _ in texts]
    requests = [
        Request(text.prompt, at_most(count)) for text, count in zip(texts, most, strict=True)
    ]

    def arriving() -> Iterator[Request | None]:
        for request, pause in zip(requests, pauses, strict=True):
            yield from [None] * pause
            yield request

    results: dict[int, list[Step]] = {number: [] for number in range(len(texts))}
    for number, step in generate_batch(
        model,
        Letters(ENDS),
        arriving(),
        batch_size=data.draw(st.integers(1, 4)),
        prefill_step=data.draw(st.sampled_from([3, CHUNK, 100])),
    ):
        results[number].append(step)
        if len(results[number]) - 1 == stops[number]:
            requests[number].cancel()
    for number, (text, count) in enumerate(zip(texts, most, strict=True)):
        alone = list(
            stream_generate(
                model,
                Letters(ENDS),
                text.prompt,
                GenerationSettings(max_tokens=count, logprobs=2),
            )
        )
        if stops[number] is not None:
            alone = alone[: stops[number] + 1]
        gaps = [first[1] - second[1] for step in alone for first, second in [step.likeliest]]
        # From a token that was chosen by a hair on, another answer may be as right.
        sure = next((i for i, gap in enumerate(gaps) if gap < LEAST_GAP), len(gaps))
        assert_same(results[number][:sure], alone[:sure]) if sure else None
        if sure == len(alone):
            assert len(results[number]) == len(alone)


def check(examples: int) -> None:
    with_pictures = st.builds(
        lambda shown, seed, length: picture(shown) + words(seed, length),
        st.integers(0, 3),
        st.integers(0, 5),
        st.integers(1, 2 * CHUNK),
    )
    plain = st.builds(words, st.integers(0, 5), st.integers(1, 3 * CHUNK))
    drawn = given(
        preset=st.sampled_from(["scout", "maverick", DENSE]),
        texts=st.lists(plain | with_pictures, min_size=1, max_size=6),
        data=st.data(),
    )(rows_are_right)
    settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )(drawn)()


def test_any_rows() -> None:
    check(examples=6)


@pytest.mark.slow
@pytest.mark.prove("rows")
def test_many_rows() -> None:
    examples = scaled(60, long=1000)
    check(examples)
    print(f"\n{examples} batches of up to 6 rows")


def test_goldens_together(golden_model: Callable[[str], Llama4]) -> None:
    """Logits of rows of 1 to 150 tokens, one step each, beside those of a pass over all."""
    model = golden_model("scout")
    rows, expected = [], []
    ids = cases.text_ids(150)
    for length in (1, 31, 32, 33, 100, 149):
        rows.append(model.make_cache())
        prefill(model, Prompt(ids[0, :length].astype(np.int32)), rows[-1])
        expected.append(model(mx.array(ids[:, : length + 1]))[:, -1])
    tokens = mx.array(ids[0, [1, 31, 32, 33, 100, 149]])[:, None]
    logits = model(tokens, decoded_together(rows))[:, -1]
    difference = mx.abs(logits - mx.concatenate(expected)).max()
    assert float(difference) < tolerance("text")
    with pytest.raises(ValueError, match="1 token at a time, not 2"):
        model(mx.zeros((6, 2), mx.int32), decoded_together(rows))


@pytest.mark.parametrize("budget", [ONE, SOME])
def test_streamed_experts(tmp_path: Path, budget: str) -> None:
    model = load_streamed(folder(tmp_path, "maverick", None), budget)
    requests = [Request(text_prompt(length), at_most(8)) for length in (3, 40, 17)]
    alone = [run_alone(model, request) for request in requests]
    results = run_all(model, requests, batch_size=2)
    for number, steps in enumerate(alone):
        assert_same(results[number], steps)


def text_prompt(length: int) -> Prompt:
    return Prompt(cases.text_ids(length)[0].astype(np.int32))


def test_rows_may_be_packed_or_not() -> None:
    model = model_of(DENSE)
    packings = (None, KVQuantization(8, 32), KVQuantization(8, 32, after=20))

    def requests() -> list[Request]:
        return [
            Request(words(seed, 15).prompt, at_most(12), cache=model.make_cache(packing))
            for seed, packing in enumerate(packings)
        ]

    alone = [run_alone(model, request) for request in requests()]
    results = run_all(model, requests())
    for number, steps in enumerate(alone):
        assert [s.token for s in results[number]] == [s.token for s in steps]


def test_each_row_draws_by_its_own_seed() -> None:
    model, prompt = model_of("scout"), words(0, 10).prompt

    def requests() -> list[Request]:
        return [
            Request(
                prompt,
                GenerationSettings(
                    max_tokens=10,
                    temperature=1.0,
                    seed=seed,
                    repetition_penalty=1.2,
                    logit_bias={11: 2.0},
                    stop=("q",) if seed == 2 else (),
                    logprobs=3,
                ),
            )
            for seed in range(4)
        ]

    results = run_all(model, requests())
    assert len({tuple(step.token for step in steps) for steps in results.values()}) == 4
    for number, request in enumerate(requests()):
        alone = stream_generate(model, Letters(ENDS), request.prompt, request.settings)
        for step, expected in zip(results[number], alone, strict=True):
            assert (step.text, step.token) == (expected.text, expected.token)
            assert [t for t, _ in step.likeliest] == [t for t, _ in expected.likeliest]


def test_caches_can_be_gone_on_with() -> None:
    """Each row's own cache holds its prompt and what was said, as after `generate`."""
    model = model_of("maverick")
    texts = [words(seed, length) for seed, length in enumerate((5, 2 * CHUNK - 1, 19))]
    requests = [
        Request(text.prompt, at_most(most), cache=model.make_cache())
        for text, most in zip(texts, (4, 9, 12), strict=True)
    ]
    results = run_all(model, requests, end_tokens=())
    for number, (text, request) in enumerate(zip(texts, requests, strict=True)):
        said = [step.token for step in results[number]]
        assert {layer.offset for layer in request.cache} == {len(text.ids) + len(said) - 1}
        going_on = text + Text((*said, 40, 41))
        logits = prefill(model, going_on.prompt, request.cache)
        expected = prefill(model, going_on.prompt, model.make_cache())
        assert float(mx.abs(logits - expected).max()) < tolerance("text")


def test_decode_waits_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all rows, and only when the next step is under way; no row waits inside the model."""
    model = model_of("maverick")
    requests = [Request(words(n, 5 + n).prompt, at_most(6)) for n in range(3)]
    events = recorded_waits(monkeypatch)
    run_all(model, requests, end_tokens=())
    waits = ["item", "item"] * 3  # of arrays that come together
    steps = ["async_eval", "async_eval", *waits] * 5 + ["async_eval", *waits]
    assert events == ["eval"] * 3 + steps  # a prompt is read before the next is begun


def test_a_step_copies_no_keys() -> None:
    """Whatever is held: a step's memory beside the caches does not grow with them."""
    model = model_of(DENSE)
    rows = []
    for length in (1, 8 * CHUNK, 600):
        rows.append(model.make_cache())
        for layer in rows[-1]:
            layer.reserve(40_000)
        prefill(model, words(0, length).prompt, rows[-1])
    tokens = mx.array([[1], [2], [3]])
    mx.eval(model(tokens, decoded_together(rows)))
    arrays = [layer.arrays for row in rows for layer in row]
    globals_ = max(array.nbytes for held in arrays for array in held)
    assert globals_ > 4_000_000
    del arrays
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(model(tokens, decoded_together(rows)))
    assert mx.get_peak_memory() - before < globals_ / 4


def test_one_row_goes_through_its_own_caches() -> None:
    caches = [KVCache(), KVCache()]
    assert decoded_together([caches]) is caches
    assert all(isinstance(layer, RowCaches) for layer in decoded_together([caches, caches]))
