"""What was said, as a list of messages: which are questions, what comes before them, what is left
when the oldest are dropped. Pure: no model, no tokens.
"""

from collections.abc import Sequence
from typing import Any

from mlx_llama4.errors import PromptError
from mlx_llama4.prompt.messages import Message

Part = dict[str, Any]


def opening_messages(system: str | None) -> list[Message]:
    """What a conversation begins with."""
    return [{"role": "system", "content": system}] if system else []


def questions(messages: Sequence[Message]) -> list[int]:
    """Where the user's messages stand."""
    return [index for index, message in enumerate(messages) if message["role"] == "user"]


def before(messages: Sequence[Message], turns: int) -> list[Message]:
    """The messages before the last so many questions. Raises PromptError if there are fewer."""
    asked = questions(messages)
    if not asked:
        raise PromptError("nothing has been asked yet")
    if not 1 <= turns <= len(asked):
        raise PromptError(f"cannot go back {turns} questions; {len(asked)} were asked")
    return list(messages[: asked[-turns]])


def with_document(message: Message, document: Sequence[Part]) -> Message:
    """A question about a document: its message begins with the document's own parts."""
    return message | {"content": [*document, *as_parts(message["content"])]}


def document_turn(messages: Sequence[Message], document: Sequence[Part]) -> int | None:
    """Which message the document stands in; None if in none, or if there is no document."""
    if not document:
        return None
    for index in questions(messages):
        parts = messages[index]["content"][: len(document)]
        # The very parts: somebody may say what reads the same.
        if len(parts) == len(document) and all(map(_is, parts, document)):
            return index
    return None


def without_oldest(
    messages: Sequence[Message], turns: int, document: Sequence[Part]
) -> list[Message]:
    """The messages without the first so many questions and all that answers them. What opens the
    conversation stays; a document goes over to the first question that is left.
    """
    asked = questions(messages)
    start = asked[turns] if turns < len(asked) else len(messages)
    opening, rest = list(messages[: asked[0]]), list(messages[start:])
    turn = document_turn(messages, document)
    if turn is not None and turn < start and rest:
        rest[0] = with_document(rest[0], document)
    return [*opening, *rest]


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """The messages with another system prompt, or none."""
    has_one = bool(messages) and messages[0]["role"] == "system"
    return [*opening_messages(system), *messages[has_one:]]


def as_parts(content: str | list[Part]) -> list[Part]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _is(a: object, b: object) -> bool:
    return a is b
