"""What is left of a conversation when the context is full: the oldest questions go."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlx_llama4.chat.conversation import Part, questions, without_oldest
from mlx_llama4.prompt.messages import Message
from mlx_llama4.prompt.prompt import Prompt

# Of the context, what an answer must have room for before old questions are dropped, and has after:
# more than must be, or the next question would have all read anew again.
LEAST_ROOM, ROOM_AFTER = 1 / 8, 1 / 4


@dataclass(frozen=True)
class Fitted:
    """dropped: how many questions, with their answers, are not in `messages` any more."""

    messages: list[Message]
    prompt: Prompt
    dropped: int = 0


def fit_messages(
    messages: Sequence[Message],
    document: Sequence[Part],
    encode: Callable[[Sequence[Message]], Prompt],
    context: int,
    max_tokens: int,
) -> Fitted:
    """The messages, without as many of the oldest questions as it takes to have room for an answer
    of max_tokens tokens, or of a share of the context if that is less. The last question stays, be
    it too long. context: tokens of prompt and answer.
    """
    prompt = encode(messages)
    droppable = len(questions(messages)) - 1
    if len(prompt.ids) + min(max_tokens, int(context * LEAST_ROOM)) <= context or droppable < 1:
        return Fitted(list(messages), prompt)
    room = int(context * ROOM_AFTER)

    def left(turns: int) -> list[Message]:
        return without_oldest(messages, turns, document)

    def fits(turns: int) -> bool:
        return len(encode(left(turns)).ids) + room <= context

    turns = 1 + bisect.bisect_left(range(1, droppable), True, key=fits)
    return Fitted(left(turns), encode(left(turns)), turns)
