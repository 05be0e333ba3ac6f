"""Work on a conversation's list of messages: find questions, cut it, drop the oldest turns.

Pure functions: no model, no tokens.
"""

from collections.abc import Sequence
from typing import Any

from mlx_llama4.errors import PromptError
from mlx_llama4.prompt.messages import Message

Part = dict[str, Any]


def opening_messages(system: str | None) -> list[Message]:
    """The messages that a conversation begins with."""
    return [{"role": "system", "content": system}] if system else []


def questions(messages: Sequence[Message]) -> list[int]:
    """The indices of the user's messages."""
    return [index for index, message in enumerate(messages) if message["role"] == "user"]


def before(messages: Sequence[Message], turns: int) -> list[Message]:
    """The messages before the last `turns` questions. Raises PromptError if there are fewer."""
    asked = questions(messages)
    if not asked:
        raise PromptError("nothing has been asked yet")
    if not 1 <= turns <= len(asked):
        raise PromptError(f"cannot go back {turns} questions; {len(asked)} were asked")
    return list(messages[: asked[-turns]])


def with_document(message: Message, document: Sequence[Part]) -> Message:
    """Return the message with the document's parts in front of its own."""
    return message | {"content": [*document, *as_parts(message["content"])]}


def document_turn(messages: Sequence[Message], document: Sequence[Part]) -> int | None:
    """The index of the message that has the document; None if none has, or there is none."""
    if not document:
        return None
    for index in questions(messages):
        parts = messages[index]["content"][: len(document)]
        # Compare identity: a user may type the same text.
        if len(parts) == len(document) and all(map(_is, parts, document)):
            return index
    return None


def without_oldest(
    messages: Sequence[Message], turns: int, document: Sequence[Part]
) -> list[Message]:
    """The messages without the first `turns` questions and their answers.

    The opening messages stay. A document moves to the first question that is left.
    """
    asked = questions(messages)
    start = asked[turns] if turns < len(asked) else len(messages)
    opening, rest = list(messages[: asked[0]]), list(messages[start:])
    turn = document_turn(messages, document)
    if turn is not None and turn < start and rest:
        rest[0] = with_document(rest[0], document)
    return [*opening, *rest]


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """The messages with their system prompt replaced, or removed if `system` is None."""
    has_one = bool(messages) and messages[0]["role"] == "system"
    return [*opening_messages(system), *messages[has_one:]]


def as_parts(content: str | list[Part]) -> list[Part]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _is(a: object, b: object) -> bool:
    return a is b
