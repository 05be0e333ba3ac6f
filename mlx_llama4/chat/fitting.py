"""Drop a conversation's oldest questions when the context is full."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlx_llama4.chat.conversation import Part, questions, without_oldest
from mlx_llama4.config import Config
from mlx_llama4.errors import PromptError
from mlx_llama4.prompt.messages import Message
from mlx_llama4.prompt.prompt import Prompt, check_length

# Shares of the context. Old questions are dropped if the answer has less room than the first. Then
# it gets the second, which is larger: otherwise the next question would drop and re-read again.
LEAST_ROOM, ROOM_AFTER = 1 / 8, 1 / 4


@dataclass(frozen=True)
class Fitted:
    """A conversation that fits into the context."""

    messages: list[Message]
    prompt: Prompt
    dropped: int = 0  # questions that were dropped, with their answers


def fit_messages(
    messages: Sequence[Message],
    document: Sequence[Part],
    encode: Callable[[Sequence[Message]], Prompt],
    context: int,
    max_tokens: int,
) -> Fitted:
    """Drop the oldest questions until there is room for an answer.

    Room means max_tokens tokens, or a share of the context if that is less. The last question
    stays, even if it is too long. context: tokens of prompt and answer.
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


def room_behind(prompt: Prompt, config: Config, context: int) -> int:
    """How many tokens there is room for after the prompt. Raises PromptError if there is none.

    context: how many tokens of prompt and answer the model and the memory allow.
    """
    check_length(prompt, config)
    if len(prompt.ids) >= context:
        raise PromptError(
            f"the prompt has {len(prompt.ids):,} tokens; beside the model this machine's "
            f"memory holds {context:,}, answer included; pack them with --kv-bits, "
            "shorten it or start a new conversation; --force tries anyway"
        )
    return context - len(prompt.ids)
