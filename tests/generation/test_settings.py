"""One object of settings, from whoever asks down to the sampler."""

from collections.abc import Iterator
from dataclasses import replace

import mlx.core as mx
import pytest

from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.config import GenerationConfig
from mlx_llama4.errors import InputError
from mlx_llama4.generation.adjustments import logit_bias
from mlx_llama4.generation.sampler import greedy
from mlx_llama4.generation.settings import GenerationSettings

DRAWN = GenerationSettings(max_tokens=12, temperature=8.0, seed=3)


@pytest.fixture
def chat(opened: Chat) -> Iterator[Chat]:
    opened.options = ChatOptions()
    opened.reset()
    opened.processor.defaults = GenerationConfig(())
    yield opened


def test_what_is_not_given_is_the_model_s() -> None:
    defaults = GenerationConfig((), do_sample=True, temperature=0.6, top_p=0.9, top_k=7)
    found = GenerationSettings(seed=1).resolved(defaults)
    assert found == GenerationSettings(temperature=0.6, top_p=0.9, top_k=7, seed=1)
    given = GenerationSettings(temperature=0.0, top_p=1.0, top_k=0)
    assert given.resolved(defaults) == given
    assert GenerationSettings().resolved(replace(defaults, do_sample=False)).temperature == 0
    assert found.resolved(GenerationConfig(())) == found


def test_one_s_own_sampler_and_adjustments() -> None:
    assert GenerationSettings(temperature=1.0, sampler=greedy).make_sampler() is greedy
    settings = GenerationSettings(logit_bias={1: 4.0}, adjustments=(logit_bias({0: 1.0}),))
    logits = mx.zeros((1, 2))
    for adjust in settings.make_adjustments():
        logits = adjust(logits, mx.array([False, False]))
    assert logits.tolist() == [[1.0, 4.0]]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"max_tokens": 0}, "max_tokens 0 must be 1 or more"),
        ({"temperature": -1.0}, "temperature -1.0 must be 0 or more"),
        ({"top_p": 0.0}, "top-p 0.0 must be above 0"),
        ({"min_p": 2.0}, "min-p 2.0 must be from 0 to 1"),
        ({"seed": -1}, "seed -1 must be from 0"),
        ({"repetition_penalty": 0.0}, "repetition penalty 0.0 must be above 0"),
        ({"logit_bias": {3: float("nan")}}, "the bias of token 3"),
        ({"logprobs": -1}, "logprobs -1 must be 0 or more"),
        ({"stop": ("",)}, "a stop string is empty"),
    ],
)
def test_what_is_out_of_range(chat: Chat, bad: dict[str, object], message: str) -> None:
    settings = GenerationSettings(**bad)
    with pytest.raises(InputError, match=message):
        settings.check()
    before = chat.options.settings
    with pytest.raises(InputError, match=message):
        chat.set_settings(settings)
    assert chat.options.settings is before
    chat.options.settings = settings
    with pytest.raises(InputError, match=message):
        list(chat.send("Hello"))
    assert chat.messages == []


def test_a_chat_obeys_the_model_s_defaults(chat: Chat) -> None:
    said = "".join(chat.send("What is 7 plus 5?"))
    chat.processor.defaults = GenerationConfig((), do_sample=True, temperature=3.0)
    assert chat.settings.temperature == 3.0
    chat.options.settings = GenerationSettings(max_tokens=12, seed=3)
    drawn = "".join(chat.retry())
    chat.processor.defaults = GenerationConfig(())
    assert "".join(chat.retry()) == said
    chat.options.settings = GenerationSettings(max_tokens=12, temperature=3.0, seed=3)
    assert "".join(chat.retry()) == drawn != said


def test_a_chat_draws_on_until_it_is_to_draw_otherwise(chat: Chat) -> None:
    chat.set_settings(DRAWN)
    first, second, third = "".join(chat.send("Hello")), "".join(chat.retry()), "".join(chat.retry())
    assert len({first, second, third}) == 3
    chat.set_settings(DRAWN)
    assert ["".join(chat.retry()) for _ in range(2)] == [first, second]
    chat.options.settings = replace(DRAWN, stop=("never said",))  # no other way to draw
    assert "".join(chat.retry()) == third
    chat.options.settings = replace(DRAWN, temperature=9.0)
    "".join(chat.retry())
    chat.options.settings = DRAWN
    assert "".join(chat.retry()) == first
