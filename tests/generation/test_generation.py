"""Prefill, decode, sampling, text as it comes."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

import mlx_llama4.generation.generate as generate_module
from mlx_llama4.errors import InputError, PromptError
from mlx_llama4.generation.detokenizer import StreamingDetokenizer
from mlx_llama4.generation.generate import Statistics, stream_generate
from mlx_llama4.generation.prefill import prefill
from mlx_llama4.generation.sampler import keep_top_p, make_sampler
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.prompt import Prompt
from mlx_llama4.prompt.tokenizer import Tokenizer
from tests import tiny
from tests.generation.waits import recorded_waits
from tests.golden import cases
from tests.golden.logits import goldens
from tests.golden.pictures import TOKENIZER_FOLDER
from tests.prompts import Letters, image_prompt
from tests.tolerance import assert_same_logits

Models = Callable[[str], Llama4]

# Byte value → itself: pixel values can be given as they are.
IDENTITY = np.repeat(np.arange(256, dtype=np.float32)[:, None], 3, axis=1)


def text_prompt(length: int) -> Prompt:
    return Prompt(cases.text_ids(length)[0].astype(np.int32))


@pytest.mark.parametrize("name", ["scout", "maverick"])
def test_greedy_tokens_are_the_reference_s(golden_model: Models, name: str) -> None:
    steps = list(
        stream_generate(
            golden_model(name),
            Letters(),
            text_prompt(cases.GREEDY_PROMPT),
            GenerationSettings(max_tokens=cases.GREEDY_TOKENS),
        )
    )
    assert [step.token for step in steps] == goldens(name)["greedy"].tolist()
    assert [step.finish_reason for step in steps] == [None] * 23 + ["length"]


@pytest.mark.parametrize("span", [1, 7, 32, 50, 150, 1000])
def test_prefill_in_any_span(golden_model: Models, span: int) -> None:
    model, seen = golden_model("scout"), []
    logits = prefill(
        model,
        text_prompt(150),
        model.make_cache(),
        span=span,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert_same_logits(logits, goldens("scout")["text 150"][-1:], "text")
    assert seen == [(done, 150) for done in range(span, 150, span)]


@pytest.mark.parametrize("case", cases.IMAGES)
@pytest.mark.parametrize("span", [5, 2048])
def test_prefill_of_images_in_any_span(golden_model: Models, case: str, span: int) -> None:
    model, prompt = golden_model("maverick"), image_prompt(cases.IMAGES[case])
    logits = prefill(model, prompt, model.make_cache(), span=span)
    assert_same_logits(logits, goldens("maverick")[case][-1:], "images")


def test_prefill_continues_what_the_cache_holds(
    golden_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from the middle of an image's tokens; images before it are not encoded again."""
    encode, encoded = Llama4.image_features, []

    def counted(self: Llama4, tiles: np.ndarray) -> mx.array:
        encoded.append(len(tiles))
        return encode(self, tiles)

    model, prompt = golden_model("scout"), image_prompt(cases.IMAGES["two images"])
    slots = np.flatnonzero(prompt.ids == tiny.PATCH_ID)
    for held in (2, slots[1] + 1, slots[3] + 1, slots[6], slots[-1] + 2):
        cache = model.make_cache()
        prefill(model, Prompt(prompt.ids[:held], ()), cache) if held == 2 else None
        if held > 2:
            features = model.image_features(np.concatenate([i.table for i in prompt.images]))
            count = (prompt.ids[:held] == tiny.PATCH_ID).sum()
            model(model.embed(prompt.ids[None, :held], features[:count]), cache)
        with monkeypatch.context() as context:
            context.setattr(Llama4, "image_features", counted)
            logits = prefill(model, prompt, cache)
        assert_same_logits(logits, goldens("scout")["two images"][-1:], "images")
    # The first image has one tile and 4 slots, the second three tiles and 12.
    assert encoded == [1, 3, 1, 3, 3, 3]


def test_slots_and_features_must_agree(golden_model: Models) -> None:
    model, prompt = golden_model("scout"), image_prompt([(1, 2)])
    for broken in (Prompt(prompt.ids), Prompt(prompt.ids, prompt.images * 2)):
        with pytest.raises(PromptError, match=r"12 <\|patch\|> tokens .* (0|24) features"):
            prefill(model, broken, model.make_cache())
    with pytest.raises(PromptError, match=r"12 .* 4 features"):
        model.embed(prompt.ids[None], mx.zeros((4, 64)))


def test_end_token_stops_and_has_no_text(golden_model: Models) -> None:
    expected = goldens("scout")["greedy"].tolist()
    statistics = Statistics()
    steps = list(
        stream_generate(
            golden_model("scout"),
            Letters({expected[5]}),
            text_prompt(cases.GREEDY_PROMPT),
            GenerationSettings(max_tokens=100),
            statistics=statistics,
        )
    )
    stop = expected.index(expected[5])
    assert [step.token for step in steps] == expected[: stop + 1]
    assert (steps[-1].text, steps[-1].finish_reason) == ("", "stop")
    assert statistics.generated_tokens == stop + 1
    assert statistics.prompt_tokens == cases.GREEDY_PROMPT


def test_statistics(golden_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that is read at the start and then once a token, half a second apart."""
    clock = iter(np.arange(0, 100, 0.5))
    monkeypatch.setattr(generate_module.time, "perf_counter", lambda: next(clock))
    model, prompt, statistics = golden_model("scout"), image_prompt([(2, 2)]), Statistics()
    mx.eval(mx.zeros(10**7))  # what came before does not count
    cache = model.make_cache()
    model(mx.array(prompt.ids[None, :3]), cache)
    for _ in stream_generate(
        model,
        Letters(),
        prompt,
        GenerationSettings(max_tokens=5),
        cache=cache,
        statistics=statistics,
    ):
        pass
    assert (statistics.prompt_tokens, statistics.cached_tokens) == (len(prompt.ids), 3)
    assert (statistics.image_tiles, statistics.image_tokens) == (5, 20)
    assert statistics.generated_tokens == 5
    assert statistics.time_to_first_token == 0.5
    assert statistics.prefill_tokens_per_second == (len(prompt.ids) - 3) / 0.5
    assert statistics.decode_tokens_per_second == 4 / 2.0
    weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert weights < statistics.peak_memory_bytes < mx.get_active_memory() + 4 * 10**7
    assert {layer.offset for layer in cache} == {len(prompt.ids) + 4}


def test_logprobs_are_the_model_s_own(golden_model: Models) -> None:
    model, prompt = golden_model("scout"), text_prompt(20)
    step = next(
        stream_generate(
            model,
            Letters(),
            prompt,
            GenerationSettings(
                max_tokens=1, sampler=make_sampler(temperature=2.0, top_k=3, seed=1)
            ),
        )
    )
    logits = goldens("scout")["text 20"][-1].astype(np.float64)
    expected = logits[step.token] - np.log(np.exp(logits).sum())
    assert step.logprob == pytest.approx(expected, abs=1e-4)


def test_prompts_that_do_not_fit(golden_model: Models) -> None:
    import dataclasses

    model = Llama4(golden_model("scout").config)
    text = dataclasses.replace(model.config.text, max_position_embeddings=20)
    model.config = dataclasses.replace(model.config, text=text)
    settings = GenerationSettings(max_tokens=50)
    with pytest.raises(PromptError, match="20 tokens; this model's context holds 20"):
        next(stream_generate(model, Letters(), text_prompt(20), settings))
    with pytest.raises(PromptError, match="empty"):
        next(stream_generate(model, Letters(), text_prompt(0), settings))
    assert (
        len(list(stream_generate(model, Letters(), Prompt(text_prompt(20).ids[:18]), settings)))
        == 2
    )


def test_sampler_refuses_what_makes_no_sense() -> None:
    for bad in ({"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.5},
                {"top_k": -2}):  # fmt: skip
        with pytest.raises(InputError, match=next(iter(bad)).replace("_", "-")):
            make_sampler(**bad)


def draws(sampler: Callable[[mx.array], mx.array], logits: list[float], count: int) -> np.ndarray:
    return np.array(sampler(mx.broadcast_to(mx.array(logits), (count, len(logits)))))


def test_temperature_zero_is_greedy() -> None:
    assert draws(make_sampler(temperature=0), [1.0, 3.0, 2.0], 4).tolist() == [1] * 4


def test_sampling_follows_the_distribution() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.log(probabilities).tolist()
    counts = np.bincount(draws(make_sampler(1.0, seed=0), logits, 20000), minlength=4) / 20000
    assert np.abs(counts - probabilities).max() < 0.02
    hot = probabilities**0.5 / (probabilities**0.5).sum()
    counts = np.bincount(draws(make_sampler(2.0, seed=0), logits, 20000), minlength=4) / 20000
    assert np.abs(counts - hot).max() < 0.02


def test_filters_in_the_reference_s_order() -> None:
    """Temperature before top-p: hot enough, 0.8 of the probability takes more tokens."""
    logits = np.log([0.6, 0.25, 0.1, 0.05]).tolist()
    cold = draws(make_sampler(1.0, top_p=0.8, seed=0), logits, 2000)
    hot = draws(make_sampler(4.0, top_p=0.8, seed=0), logits, 2000)
    assert set(cold) == {0, 1}
    assert set(hot) == {0, 1, 2}
    # Top-k before top-p: of the two left, the first has 0.71.
    assert set(draws(make_sampler(1.0, top_k=2, top_p=0.7, seed=0), logits, 2000)) == {0}
    assert set(draws(make_sampler(1.0, top_k=2, seed=0), logits, 2000)) == {0, 1}
    assert set(draws(make_sampler(1.0, top_k=9, seed=0), logits, 4000)) == {0, 1, 2, 3}


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30),
    st.floats(0.01, 0.999),
)
@settings(deadline=None)
def test_top_p_keeps_the_smallest_sufficient_set(logits: list[float], top_p: float) -> None:
    kept = np.isfinite(np.array(keep_top_p(mx.array([logits]), top_p))[0])
    probabilities = np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum()
    assert kept[np.argmax(logits)]
    assert probabilities[kept].sum() >= top_p - 1e-5
    assert probabilities[kept].sum() - probabilities[kept].min() <= top_p + 1e-5
    if not kept.all():
        assert probabilities[kept].min() >= probabilities[~kept].max() - 1e-7


def test_seed() -> None:
    logits = [0.0] * 50

    def first(seed: int | None) -> list[int]:
        return draws(make_sampler(1.0, seed=seed), logits, 30).tolist()

    assert first(7) == first(7) != first(8)
    assert first(None) != first(None)
    sampler = make_sampler(1.0, seed=7)
    assert draws(sampler, logits, 30).tolist() != draws(sampler, logits, 30).tolist()
    assert first(2**64 - 1)
    for bad in (-1, 2**64):
        with pytest.raises(InputError, match="seed"):
            make_sampler(1.0, seed=bad)


def test_extreme_settings_still_give_the_likeliest() -> None:
    logits = [1.0, 40.0, 39.5, -300.0]
    for sampler in (
        make_sampler(temperature=1e-40),
        make_sampler(temperature=1e-5, seed=0),
        make_sampler(1.0, top_p=1e-50, seed=0),
        make_sampler(1.0, top_k=1, seed=0),
    ):
        assert set(draws(sampler, logits, 50)) == {1}


TOKENIZER = Tokenizer.load(TOKENIZER_FOLDER)


@given(st.text(max_size=30))
def test_streamed_text_is_the_text(text: str) -> None:
    detokenizer = StreamingDetokenizer(TOKENIZER.token_bytes)
    pieces = [detokenizer.add(token) for token in TOKENIZER.encode(text)]
    assert "".join(pieces) == text


def test_half_a_character_is_never_shown() -> None:
    tokens = TOKENIZER.encode("a🦙é")
    assert len(tokens) > 3
    detokenizer = StreamingDetokenizer(TOKENIZER.token_bytes)
    pieces = [detokenizer.add(token) for token in tokens]
    assert "\ufffd" not in "".join(pieces)
    assert [piece for piece in pieces if piece] == ["a", "🦙", "é"]
    detokenizer = StreamingDetokenizer(TOKENIZER.token_bytes)
    assert "".join(detokenizer.add(token) for token in tokens[:-1]) == "a🦙"


def test_bytes_that_are_no_text_and_tokens_that_are_none() -> None:
    detokenizer = StreamingDetokenizer(TOKENIZER.token_bytes)
    lone = TOKENIZER.encode("é")[-1]
    assert detokenizer.add(lone) == "\ufffd"
    assert detokenizer.add(TOKENIZER.special_id("<|eot|>")) == ""
    assert detokenizer.add(TOKENIZER.vocab_size + 5) == ""


def test_the_model_never_waits_for_the_device_in_decode(golden_model: Models) -> None:
    """Inside mx.compile's trace, any evaluation raises: .item(), bool(), numpy, mx.eval."""
    for name in ("scout", "maverick", "two_experts"):
        model = golden_model(name)
        cache = model.make_cache()
        mx.eval(model(mx.array(cases.text_ids(31)), cache))
        for _ in range(3):  # up to, at and after a chunk border
            traced = mx.compile(lambda token, model=model, cache=cache: model(token, cache))
            traced(mx.array([[5]]))


def test_decode_waits_once_a_token(golden_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the token and its log-probability, which come together, and only when the next token
    is already under way: every wait, and every start, counted in order.
    """
    model = golden_model("maverick")
    events = recorded_waits(monkeypatch)
    steps = stream_generate(
        model,
        Letters(),
        text_prompt(20),
        GenerationSettings(max_tokens=10),
    )
    assert len(list(steps)) == 10
    ahead = ["async_eval", "item", "item"]
    assert events == ["async_eval", *ahead * 9, "item", "item"]


def test_prefill_computes_the_last_position_s_logits_only(
    golden_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, lengths = golden_model("scout"), []
    norm = model.language_model.model.norm
    forward = type(norm).__call__

    def seen(self: object, x: mx.array) -> mx.array:
        if self is norm:  # the final norm, before the head
            lengths.append(x.shape[1])
        return forward(self, x)

    monkeypatch.setattr(type(norm), "__call__", seen)
    prefill(model, text_prompt(150), model.make_cache(), span=64)
    assert lengths == [1, 1, 1]


def test_room_is_made_once_for_a_whole_prompt(golden_model: Models) -> None:
    model = golden_model("scout")
    cache = model.make_cache()
    settings = GenerationSettings(max_tokens=200)
    steps = stream_generate(model, Letters(), text_prompt(150), settings, cache=cache)
    next(steps)
    capacities = {layer.buffers["keys"].array.shape[2] for layer in cache}
    assert capacities == {32, 512}  # a chunk, or the prompt and the answer in whole blocks
    assert len(list(steps)) == 199
    assert {layer.buffers["keys"].array.shape[2] for layer in cache} == capacities
