"""A conversation keeps its cache over turns, and stays right whatever interrupts it."""

import dataclasses
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.demo.questions import NOTES, PICTURES, QUESTIONS
from mlx_llama4.errors import ImageError, PromptError
from mlx_llama4.generation.image_features import ImageFeatureCache
from mlx_llama4.generation.settings import GenerationSettings


@pytest.fixture
def chat(opened: Chat) -> Iterator[Chat]:
    opened.options = ChatOptions()
    opened.cache = PromptCache(opened.model.make_cache())
    opened.document = []
    opened.reset()
    yield opened


def say(chat: Chat, text: str, *pictures: str) -> str:
    return "".join(chat.send(text, [chat.open_image(PICTURES / name) for name in pictures]))


def same_from_scratch(chat: Chat, text: str) -> bool:
    """Whether the next answer, with the cache as it is, is that of a fresh conversation."""
    messages = list(chat.messages)
    answer = say(chat, text)
    chat.messages, chat.cache = messages, PromptCache(chat.model.make_cache())
    again = say(chat, text)
    assert chat.statistics.cached_tokens == 0
    return answer == again


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.text)
def test_the_demo_s_questions(chat: Chat, question: object) -> None:
    answer = say(chat, question.context + question.text, *question.pictures)
    assert answer == question.expected


def test_turns_continue_the_cache(chat: Chat) -> None:
    """Each prompt is the one before, the answer's own tokens, and what is new."""
    total = 0
    for text, picture in (("My name is Ada.", ""), ("What is in the image?", "star.png"),
                          ("What is my name?", ""), ("What is 7 plus 5?", "")):  # fmt: skip
        answer = say(chat, text, *filter(None, [picture]))
        statistics = chat.statistics
        assert statistics.cached_tokens == total
        total = statistics.prompt_tokens + statistics.generated_tokens
        assert chat.cache.layers[0].offset == total
        assert statistics.finish_reason == "stop"
    assert answer == "7 plus 5 is 12."
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 4


def test_a_name_is_remembered_over_chunk_borders(chat: Chat) -> None:
    say(chat, NOTES + "What is the code of walnut?")
    assert say(chat, "What is the code of walnut?") == "The code of walnut is 407."
    assert chat.statistics.cached_tokens > 128


def test_stopping_early_keeps_what_was_said(chat: Chat) -> None:
    pieces = chat.send("What is a llama?")
    heard = next(pieces) + next(pieces)
    pieces.close()
    assert chat.messages[-1]["content"] == heard
    assert same_from_scratch(chat, "What is 2 plus 3?")


def test_interruption_while_the_answer_comes(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C inside a step leaves the layers out of step: the step is undone, no more."""
    block, calls = type(chat.model.language_model.model.layers[3]), 0
    forward = block.__call__

    def interrupted(self: object, *args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 6 * 8 + 3:
            raise KeyboardInterrupt
        return forward(self, *args)

    monkeypatch.setattr(block, "__call__", interrupted)
    heard = []
    with pytest.raises(KeyboardInterrupt):
        heard.extend(chat.send("What is a llama?"))
    assert chat.messages[-1]["content"]
    prompt = chat.statistics.prompt_tokens
    # Six steps were whole, the prompt's and five tokens'.
    assert {layer.offset for layer in chat.cache.layers} == {prompt + 5}
    monkeypatch.undo()
    assert same_from_scratch(chat, "What is 2 plus 3?")


def test_interruption_while_the_prompt_is_read(chat: Chat) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    long = NOTES * 20 + "What is the code of walnut?"
    with pytest.raises(KeyboardInterrupt):
        list(chat.send(long, on_prefill=stop))
    assert chat.messages == []
    kept = chat.cache.layers[0].offset
    assert kept == 2048
    say(chat, long)
    assert chat.statistics.cached_tokens == kept


def test_pictures_are_told_of_before_they_are_encoded(chat: Chat) -> None:
    """Those that are known already are not, be they in the same message."""
    told: list[tuple[int, int]] = []
    star, two = (chat.open_image(PICTURES / name) for name in ("star.png", "two.png"))
    chat.features = ImageFeatureCache()
    list(chat.send("What is in the image?", [star], on_picture=lambda *how: told.append(how)))
    list(chat.send("And now?", [star, two, two], on_picture=lambda *how: told.append(how)))
    assert told == [(0, 1), (0, 1)]
    chat.features = ImageFeatureCache()
    chat.cache = PromptCache(chat.model.make_cache())
    list(chat.retry(on_picture=lambda *how: told.append(how)))
    assert told[2:] == [(0, 2), (1, 2)]


def test_refused_prompts_leave_no_trace(chat: Chat) -> None:
    say(chat, "My name is Ada.")
    before = list(chat.messages)
    for bad in ("", "  \n "):
        with pytest.raises(PromptError, match="empty"):
            say(chat, bad)
    text = dataclasses.replace(chat.model.config.text, max_position_embeddings=30)
    whole = chat.model.config
    chat.model.config = dataclasses.replace(whole, text=text)
    with pytest.raises(PromptError, match="context holds 30"):
        say(chat, "What is my name? " * 10)
    chat.model.config = whole
    with pytest.raises(ImageError):
        chat.open_image(PICTURES / "nowhere.png")
    assert chat.messages == before
    assert say(chat, "What is my name?") == "Your name is Ada."
    assert chat.statistics.cached_tokens > 0


def test_other_image_same_tokens(chat: Chat) -> None:
    """Two pictures of one size have the same ids; the cache must not confuse them."""
    assert "yellow star" in say(chat, "What is in the image?", "first.png")
    chat.messages.clear()
    assert "red triangle" in say(chat, "What is in the image?", "second.png")


def test_quota_and_what_follows(chat: Chat) -> None:
    chat.options.settings = GenerationSettings(max_tokens=3)
    heard = say(chat, "What is a llama?")
    assert (chat.statistics.finish_reason, chat.statistics.generated_tokens) == ("length", 3)
    assert chat.messages[-1]["content"] == heard
    chat.options.settings = GenerationSettings(max_tokens=100)
    assert same_from_scratch(chat, "What is 2 plus 3?")


def test_system_prompt_and_reset(chat: Chat) -> None:
    chat.options.system = "Be kind."
    chat.reset()
    say(chat, "Hello")
    first = bytes(np.concatenate([[], chat.cache.ids]).astype(np.int32))
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "Be kind."}]
    say(chat, "Hello")
    assert bytes(chat.cache.ids.astype(np.int32)) == first
    assert b"Be kind." in b"".join(map(chat.processor.tokenizer.token_bytes, chat.cache.ids))


def test_a_generated_patch_token_does_not_ask_for_an_image_ever_after(chat: Chat) -> None:
    patch, eot = (chat.processor.tokenizer.special_ids[n] for n in ("<|patch|>", "<|eot|>"))
    script = iter([patch, 65, patch, eot, eot])
    chat.options.settings = GenerationSettings(sampler=lambda logits: mx.array([next(script)]))
    say(chat, "Hello")
    chat.options.settings = GenerationSettings()
    assert same_from_scratch(chat, "What is 2 plus 3?")


def test_a_second_question_ends_the_first_answer(chat: Chat) -> None:
    """Both once wrote into one cache."""
    first = chat.send("What is a llama?")
    heard = next(first)
    assert say(chat, "What is 2 plus 3?") == "2 plus 3 is 5."
    assert chat.messages[1]["content"] == heard
    assert next(first, None) is None
    assert len(chat.messages) == 4
    assert same_from_scratch(chat, "What is 7 plus 5?")
    open_answer = chat.send("Hello")
    next(open_answer)
    chat.reset()
    assert chat.messages == [] and next(open_answer, None) is None


def test_every_end_token_ends(chat: Chat) -> None:
    """Those of generation_config.json and the family's own."""
    ids = chat.processor.tokenizer.special_ids
    assert {ids["<|eot|>"], ids["<|eom|>"], ids["<|end_of_text|>"]} <= chat.processor.end_tokens
