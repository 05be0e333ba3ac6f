"""When the context is full the oldest questions are dropped, or the message is refused."""

import dataclasses

import pytest

from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.chat.conversation import questions
from mlx_llama4.demo.questions import PICTURES
from mlx_llama4.errors import PromptError
from mlx_llama4.generation.settings import GenerationSettings

CONTEXT = 300


@pytest.fixture
def dropped() -> list[int]:
    return []


@pytest.fixture
def chat(opened: Chat, dropped: list[int]) -> Chat:
    opened.options = ChatOptions(
        GenerationSettings(max_tokens=40), max_context=CONTEXT, on_dropped=dropped.append
    )
    opened.cache = PromptCache(opened.model.make_cache())
    opened.document = []
    opened.reset()
    return opened


def ask(chat: Chat, number: int) -> str:
    return "".join(chat.send(f"What is {number % 10} plus {number // 10}?"))


def test_a_long_conversation_goes_on(chat: Chat, dropped: list[int]) -> None:
    chat.set_system("Answer briefly.")
    for number in range(24):
        ask(chat, number)
        statistics = chat.statistics
        assert statistics.prompt_tokens + statistics.generated_tokens <= CONTEXT
    assert len(dropped) >= 2
    assert len(questions(chat.messages)) == 24 - sum(dropped)
    assert chat.messages[0]["role"] == "system"
    # More than must be: what is left is not read again with each question.
    assert len(dropped) < sum(dropped)


def test_the_answer_is_that_of_a_conversation_without_the_dropped(chat: Chat) -> None:
    for number in range(9):
        ask(chat, number)
    messages = list(chat.messages)
    last = "".join(chat.send("What is 3 plus 4?"))
    kept = chat.messages[:-2]
    assert kept == messages[len(messages) - len(kept) :]
    chat.messages, chat.cache = kept, PromptCache(chat.model.make_cache())
    assert "".join(chat.send("What is 3 plus 4?")) == last
    assert chat.statistics.cached_tokens == 0


def test_strict(chat: Chat) -> None:
    chat.options.on_dropped = None
    with pytest.raises(PromptError, match="memory holds 300"):
        for number in range(24):
            ask(chat, number)
    said = list(chat.messages)
    assert 5 < len(questions(said)) < 23
    with pytest.raises(PromptError):
        ask(chat, 1)
    assert chat.messages == said


def test_one_message_that_is_too_long_leaves_no_trace(chat: Chat, dropped: list[int]) -> None:
    ask(chat, 12)
    said = list(chat.messages)
    with pytest.raises(PromptError, match="memory holds 300"):
        list(chat.send("no " * 800))
    assert (chat.messages, dropped) == (said, [])
    assert ask(chat, 34)


def test_a_document_stays(chat: Chat, dropped: list[int]) -> None:
    chat.read("The code of walnut is 407. The garden seemed bright last summer.")
    star = chat.open_image(PICTURES / "star.png")
    list(chat.send("What is in the image?", [star]))
    while not dropped:
        ask(chat, len(chat.messages))
    assert chat.is_document_pending is False
    # The document goes with the oldest question that is left, its picture has gone.
    first = chat.messages[questions(chat.messages)[0]]["content"]
    assert first[0] is chat.document[0]
    assert not any(part["type"] == "image" for part in first)


def test_options_of_a_fork_are_its_own(chat: Chat) -> None:
    ask(chat, 11)
    forked = chat.fork()
    forked.set_system("Be kind.")
    assert chat.messages[0]["role"] == "user"
    assert chat.options.system is None
    assert dataclasses.replace(forked.options, system=None) == chat.options
