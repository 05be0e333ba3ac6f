"""Stop strings: what comes before is shown, nothing of them or after."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.chat import Chat
from mlx_llama4.errors import InputError
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.generation.stop import StopStrings

SOME = st.text("ab🦙é", max_size=12)


def shown(stops: StopStrings, pieces: list[str]) -> list[str]:
    return [*(stops.add(piece) for piece in pieces), stops.rest()]


@given(SOME, st.text("ab🦙é", min_size=1, max_size=4), st.lists(st.integers(0, 12)))
def test_any_split_of_any_text(text: str, stop: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    stops = StopStrings([stop])
    assert "".join(shown(stops, pieces)) == text.partition(stop)[0]
    assert stops.found == (stop in text)


@given(SOME, st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.integers(0, 12))
def test_of_several_the_first_complete_one_counts(text: str, strings: list[str], cut: int) -> None:
    ends = [
        (start + len(string), start)
        for string in strings
        for start in range(len(text))
        if text.startswith(string, start)
    ]
    expected = text[: min(ends)[1]] if ends else text
    for pieces in ([text], list(text), [text[:cut], text[cut:]]):
        assert "".join(shown(StopStrings(strings), pieces)) == expected


def test_no_more_is_held_back_than_could_begin_one() -> None:
    assert shown(StopStrings(["###"]), ["a #", "b", " ##", " #", "##"]) == [
        "a ", "#b", " ", "## ", "", ""
    ]  # fmt: skip
    assert shown(StopStrings([]), ["a", "b"]) == ["a", "b", ""]
    with pytest.raises(InputError, match="empty"):
        StopStrings(["a", ""])


def test_an_answer_ends_before_it(chat: Chat) -> None:
    whole = "".join(chat.send("Hello"))
    tokens = chat.statistics.generated_tokens
    for stop in ("help", " I h", "!", "you?"):
        chat.options.settings = GenerationSettings(stop=(stop, "never said"))
        chat.reset()
        assert "".join(chat.send("Hello")) == whole.partition(stop)[0]
        assert chat.statistics.finish_reason == "stop"
        assert chat.statistics.generated_tokens < tokens
    chat.options.settings = GenerationSettings(stop=("you? And", "never said"))
    assert "".join(chat.retry()) == whole
    chat.options.settings = GenerationSettings(
        max_tokens=tokens - 2, stop=("you? And", "never said")
    )
    assert whole.startswith("".join(chat.retry()))
    assert chat.statistics.finish_reason == "length"


def test_the_conversation_goes_on_from_the_cache(chat: Chat) -> None:
    """Its message shows what was shown and has the tokens that the cache holds."""
    chat.options.settings = GenerationSettings(stop=("can",))
    assert "".join(chat.send("Hello")) == "Hello! How "
    message, held = chat.messages[-1], np.array(chat.cache.ids)
    assert message["content"] == "Hello! How "
    said = b"".join(map(chat.processor.tokenizer.token_bytes, message["token_ids"]))
    assert said == b"Hello! How can"
    chat.options.settings = GenerationSettings()
    answer = "".join(chat.send("What is 2 plus 3?"))
    assert chat.statistics.cached_tokens == len(held)
    assert (chat.cache.ids[: len(held)] == held).all()
    chat.messages, chat.cache = chat.messages[:2], PromptCache(chat.model.make_cache())
    assert "".join(chat.send("What is 2 plus 3?")) == answer
    assert chat.statistics.cached_tokens == 0
