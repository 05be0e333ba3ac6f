"""How a token is chosen: min-p, adjustments by what was said before, what is told beside it."""

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_llama4.cli.sampling import parse_logit_bias
from mlx_llama4.errors import InputError
from mlx_llama4.generation.adjustments import Adjustment, logit_bias, repetition_penalty
from mlx_llama4.generation.choice import Chooser, wait_for
from mlx_llama4.generation.generate import Statistics, Step, Wordless, stream_generate
from mlx_llama4.generation.sampler import greedy, keep_min_p, make_sampler
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.prompt import Prompt
from mlx_llama4.prompt.tokenizer import Tokenizer
from tests.golden import cases
from tests.golden.logits import goldens
from tests.golden.pictures import TOKENIZER_FOLDER

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30)


def softmax(logits: list[float]) -> np.ndarray:
    powers = np.exp(np.float64(logits))
    return powers / powers.sum()


@given(LOGITS, st.floats(0.001, 1))
@settings(deadline=None)
def test_min_p_keeps_what_is_probable_beside_the_likeliest(
    logits: list[float], min_p: float
) -> None:
    kept = np.isfinite(np.array(keep_min_p(mx.array([logits]), min_p))[0])
    ratios = softmax(logits) / softmax(logits).max()
    assert kept[np.argmax(logits)]
    assert (kept[ratios > min_p * 1.001]).all()
    assert not (kept[ratios < min_p * 0.999]).any()


def test_min_p_comes_after_temperature() -> None:
    logits = mx.broadcast_to(mx.log(mx.array([0.6, 0.25, 0.1, 0.05])), (2000, 4))
    assert set(make_sampler(1.0, min_p=0.3, seed=0)(logits).tolist()) == {0, 1}
    assert set(make_sampler(4.0, min_p=0.6, seed=0)(logits).tolist()) == {0, 1, 2}
    assert set(make_sampler(4.0, min_p=0.6, top_k=2, seed=0)(logits).tolist()) == {0, 1}
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="min-p"):
            make_sampler(1.0, min_p=bad)


@given(LOGITS, st.floats(0.1, 5), st.data())
@settings(deadline=None)
def test_repetition_penalty_is_the_reference_s_rule(
    logits: list[float], penalty: float, data: st.DataObject
) -> None:
    seen = data.draw(st.sets(st.integers(0, len(logits) - 1)))
    mask = mx.array([token in seen for token in range(len(logits))])
    adjusted = repetition_penalty(penalty)(mx.array([logits]), mask)
    expected = [
        logit if token not in seen else logit * penalty if logit < 0 else logit / penalty
        for token, logit in enumerate(logits)
    ]
    assert np.allclose(np.array(adjusted)[0], expected, rtol=1e-5)


def test_penalties_and_biases_that_are_refused() -> None:
    for bad in (0, -1, math.inf, math.nan):
        with pytest.raises(InputError, match="repetition penalty"):
            repetition_penalty(bad)
    for bad in (math.nan, math.inf):
        with pytest.raises(InputError, match="token 3"):
            logit_bias({3: bad})


def test_logit_bias() -> None:
    adjusted = logit_bias({0: 2.5, 2: -100, 3: -math.inf, 4: -99})(mx.zeros((1, 5)), mx.zeros(5))
    assert adjusted.tolist() == [[2.5, 0, -math.inf, -math.inf, -99]]


def test_logit_bias_as_typed() -> None:
    tokenizer = Tokenizer.load(TOKENIZER_FOLDER)
    (comma,), eot = tokenizer.encode(","), tokenizer.special_id("<|eot|>")
    vocabulary = 10**6
    for typed, expected in {
        ",=-3": (comma, -3.0),
        ",=-inf": (comma, -math.inf),
        "17=1.5": (17, 1.5),
        "==2": (tokenizer.encode("=")[0], 2.0),
        "<|eot|>=-100": (eot, -100.0),
    }.items():
        assert parse_logit_bias(typed, tokenizer, vocabulary) == expected
    for typed in ("", "=", "=1", ",", ",=", ",=x", ",=nan", ",=inf"):
        with pytest.raises(InputError, match="TOKEN=BIAS"):
            parse_logit_bias(typed, tokenizer, vocabulary)
    with pytest.raises(InputError, match=r"'🦙🦙' is .* tokens .*, by their ids"):
        parse_logit_bias("🦙🦙=1", tokenizer, vocabulary)


def test_settings_make_what_they_say() -> None:
    assert GenerationSettings().make_sampler() is greedy
    assert GenerationSettings().make_adjustments() == ()
    assert not GenerationSettings().is_random
    assert GenerationSettings(temperature=0.5).is_random
    both = GenerationSettings(repetition_penalty=2.0, logit_bias={1: 4.0}).make_adjustments()
    logits = mx.array([[3.0, 2.0]])
    for adjust in both:
        logits = adjust(logits, mx.array([True, True]))
    assert logits.tolist() == [[1.5, 5.0]]


def steps(
    model: Llama4, count: int, statistics: Statistics | None = None, **options: object
) -> list[Step]:
    prompt = Prompt(cases.text_ids(20)[0].astype(np.int32))
    settings = GenerationSettings(max_tokens=count, **options)
    return list(stream_generate(model, Wordless(), prompt, settings, statistics=statistics))


def test_prompt_and_answer_are_remembered(golden_model: Callable[[str], Llama4]) -> None:
    """What each adjustment is given: the tokens of the prompt, and then those chosen."""
    given: list[mx.array] = []

    def spy(logits: mx.array, seen: mx.array) -> mx.array:
        given.append(seen)
        return repetition_penalty(1e6)(logits, seen)

    said = [step.token for step in steps(golden_model("scout"), 6, adjustments=(spy,))]
    prompt = set(cases.text_ids(20)[0].tolist())
    for number in range(6):
        assert set(np.flatnonzero(given[number]).tolist()) == prompt | set(said[:number])
    assert len(set(said)) == 6 and not prompt & set(said)


def test_what_is_told_is_the_model_s_own(golden_model: Callable[[str], Llama4]) -> None:
    """Log-probabilities before penalty, bias and temperature, also of the likeliest."""
    logits = goldens("scout")["text 20"][-1].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum())
    best = np.argsort(-logits)[:4]
    statistics = Statistics()
    forbidden: tuple[Adjustment, ...] = (logit_bias({int(best[0]): -100}),)
    (step,) = steps(
        golden_model("scout"),
        1,
        adjustments=forbidden,
        sampler=make_sampler(temperature=3.0, top_k=1, seed=0),
        logprobs=4,
        statistics=statistics,
    )
    assert step.token == best[1]
    assert step.logprob == pytest.approx(logprobs[best[1]], abs=1e-4)
    assert [token for token, _ in step.likeliest] == best.tolist()
    assert [logprob for _, logprob in step.likeliest] == pytest.approx(logprobs[best], abs=1e-4)
    assert statistics.steps == [step]


def test_more_likeliest_than_there_are_tokens() -> None:
    logits = mx.array([[0.0, 2.0, 1.0]])
    chosen = wait_for(Chooser(greedy, likeliest=10)(logits))
    assert [token for token, _ in chosen.likeliest] == [1, 2, 0]
    assert sum(math.exp(logprob) for _, logprob in chosen.likeliest) == pytest.approx(1)


def test_adjusting_does_not_make_the_host_wait(
    golden_model: Callable[[str], Llama4], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wait, and each start of the next token, in order."""
    events = []

    def recorded(name: str, call: Callable) -> Callable:
        return lambda *args: events.append(name) or call(*args)

    for name in ("eval", "async_eval", "synchronize"):
        monkeypatch.setattr(mx, name, recorded(name, getattr(mx, name)))
    for name in ("item", "tolist"):
        monkeypatch.setattr(mx.array, name, recorded(name, getattr(mx.array, name)))
    adjustments = GenerationSettings(repetition_penalty=1.1, logit_bias={3: 1.0}).make_adjustments()
    sampler = make_sampler(1.0, min_p=0.1, seed=0)
    model = golden_model("scout")
    steps(model, 4, adjustments=adjustments, sampler=sampler, stop=("x",))
    assert events == ["async_eval", *["async_eval", "item", "item"] * 3, "item", "item"]
    events.clear()
    steps(model, 2, adjustments=adjustments, logprobs=2)
    waits = ["item", "item", "tolist", "tolist"]
    assert events == ["async_eval", "async_eval", *waits, *waits]
