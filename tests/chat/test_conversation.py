"""What was said, without a model: questions, documents, what is left when the oldest go."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_llama4.chat.conversation import (
    before,
    document_turn,
    opening_messages,
    questions,
    with_document,
    with_system,
    without_oldest,
)
from mlx_llama4.chat.fitting import LEAST_ROOM, ROOM_AFTER, fit_messages
from mlx_llama4.errors import PromptError
from mlx_llama4.prompt.prompt import Prompt

TEXTS = st.text("ab ", min_size=1, max_size=8)


def message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def turns(*texts: str) -> list[dict[str, Any]]:
    return [message(role, text) for text in texts for role in ("user", "assistant")]


def encode(messages: list[dict[str, Any]]) -> Prompt:
    """A token a character, and one a message."""
    length = sum(
        1 + sum(len(part["text"]) for part in content)
        if isinstance(content := one["content"], list)
        else 1 + len(content)
        for one in messages
    )
    return Prompt(np.zeros(length, np.int32))


def test_going_back() -> None:
    said = [*opening_messages("Be brief."), *turns("a", "b", "c")]
    assert questions(said) == [1, 3, 5]
    assert before(said, 1) == said[:5]
    assert before(said, 3) == said[:1]
    with pytest.raises(PromptError, match="cannot go back 4 questions; 3 were asked"):
        before(said, 4)
    with pytest.raises(PromptError, match="nothing has been asked"):
        before(said[:1], 1)


def test_results_of_tools_go_with_their_question() -> None:
    said = [*turns("a"), message("ipython", "3"), message("assistant", "It is 3."), *turns("b")]
    assert before(said, 2) == []
    assert without_oldest(said, 1, []) == said[4:]


def test_another_system_prompt() -> None:
    said = turns("a")
    assert with_system(said, "x") == [message("system", "x"), *said]
    assert with_system(with_system(said, "x"), "y") == [message("system", "y"), *said]
    assert with_system(with_system(said, "x"), None) == said


def test_a_document_is_known_by_its_own_parts() -> None:
    """Somebody may say the same words as a document has."""
    document = [{"type": "text", "text": "D\n\n"}]
    same = {"role": "user", "content": [{"type": "text", "text": "D\n\n"}]}
    question = with_document(message("user", "Why?"), document)
    assert [part["text"] for part in question["content"]] == ["D\n\n", "Why?"]
    assert document_turn([same, question], document) == 1
    assert document_turn([same], document) is None
    assert document_turn([question], []) is None


def test_a_document_goes_over_to_the_oldest_question_left() -> None:
    document = [{"type": "text", "text": "D\n\n"}]
    first = with_document(message("user", "a"), document)
    said = [message("system", "S"), first, message("assistant", "A"), *turns("b", "c")]
    left = without_oldest(said, 1, document)
    assert [one["content"] for one in left[2:]] == ["b", "c", "c"]
    assert [part["text"] for part in left[1]["content"]] == ["D\n\n", "b"]
    assert left[0] == said[0]
    assert document_turn(left, document) == 1
    assert said[3]["content"] == "b"  # untouched
    assert without_oldest(said[3:], 1, document) == said[5:]  # the document is pending, not said


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=12),
    system=st.none() | TEXTS,
    document=st.lists(st.builds(lambda text: {"type": "text", "text": text}, TEXTS), max_size=1),
    context=st.integers(8, 200),
    max_tokens=st.integers(1, 100),
)
def test_as_few_are_dropped_as_will_do(
    texts: list[str], system: str | None, document: list, context: int, max_tokens: int
) -> None:
    said = [*opening_messages(system), *turns(*texts)[:-1]]
    if document:
        at = questions(said)[0]
        said[at] = with_document(said[at], document)
    fitted = fit_messages(said, document, encode, context, max_tokens)
    assert fitted.prompt.ids.shape == encode(fitted.messages).ids.shape
    assert fitted.messages[-1]["content"] in (said[-1]["content"], [*document, *[
        {"type": "text", "text": texts[-1]}]])  # fmt: skip
    assert document_turn(fitted.messages, document) == (
        questions(fitted.messages)[0] if document else None
    )
    needed = min(max_tokens, int(context * LEAST_ROOM))
    room = int(context * ROOM_AFTER)
    if len(encode(said).ids) + needed <= context:
        assert fitted.dropped == 0 and fitted.messages == said
        return
    assert fitted.messages == without_oldest(said, fitted.dropped, document)
    if fitted.dropped < len(texts) - 1:
        assert len(fitted.prompt.ids) + room <= context
    if fitted.dropped > 1:
        one_less = without_oldest(said, fitted.dropped - 1, document)
        assert len(encode(one_less).ids) + room > context
