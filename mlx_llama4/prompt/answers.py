"""Turn a generated answer into a message for the conversation, and find its tool calls."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_llama4.prompt.messages import Message
from mlx_llama4.prompt.processor import Processor
from mlx_llama4.prompt.replies import PYTHON_END, PYTHON_START, Reply, parse_reply

Tools = Sequence[Mapping[str, Any]]


def answer_message(
    text: str,
    generated: Sequence[int],
    processor: Processor,
    tools: Tools | None,
    image_token_id: int | None,
) -> Message:
    """Make the assistant's message. It keeps the generated ids, since its text might be tokenised
    differently.
    """
    ended = generated[-1] in processor.end_tokens
    # A model may emit the id of an image slot, which would ask for an image in every later turn.
    ids = [id_ for id_ in (generated[:-1] if ended else generated) if id_ != image_token_id]
    answer = {"role": "assistant", "content": text, "token_ids": ids}
    if calls := reply_of(answer, processor, tools).calls:
        answer["tool_calls"] = [dataclasses.asdict(call) for call in calls]
    return answer


def reply_of(answer: Message, processor: Processor, tools: Tools | None) -> Reply:
    """Split an answer into its text and its tool calls."""
    if not tools:
        return Reply(answer["content"], (), None)
    # A conversation from elsewhere has only the text, not the tokens.
    ids = answer.get("token_ids")
    marks = (PYTHON_START, PYTHON_END)
    text = processor.tokenizer.decode(ids, shown=marks) if ids else None
    names = [tool["function"]["name"] for tool in tools]
    return parse_reply(text or answer["content"], names)
