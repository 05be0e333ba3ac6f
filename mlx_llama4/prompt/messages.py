"""Build a user's messages: pictures, a document, a question."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlx_llama4.errors import PromptError
from mlx_llama4.prompt.image import PromptImage

Message = dict[str, Any]

# Where the parts of other libraries' messages keep a picture's path or URL.
PICTURE_KEYS = ("url", "path", "base64")


def user_message(text: str, images: Sequence[PromptImage]) -> Message:
    """Make a user's message, with its images before its text."""
    parts = [{"type": "image", "image": image} for image in images]
    content = [*parts, {"type": "text", "text": text}] if images else text
    return {"role": "user", "content": content}


def with_image_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write a message's pictures as {"type": "image", "image": …}, however it names them.

    OpenAI's messages have {"type": "image_url", "image_url": {"url": …}}, and transformers'
    {"type": "image"} with "url", "path" or "base64". Raises PromptError for one without.
    """
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return message
    return {**message, "content": [_with_image(part) for part in content]}


def _with_image(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    if part.get("type") in ("image_url", "input_image"):
        named = part.get("image_url")
        source = named.get("url") if isinstance(named, Mapping) else named
        if not isinstance(source, str):
            raise PromptError(
                'a message\'s part has no URL; write {"type": "image_url", "image_url": '
                '{"url": "https://…"}}'
            )
        return {"type": "image", "image": source}
    if part.get("type") == "image" and "image" not in part:
        for key in PICTURE_KEYS:
            if isinstance(source := part.get(key), str):
                source = f"data:;base64,{source}" if key == "base64" else source
                return {"type": "image", "image": source}
    return part


def document_parts(text: str, images: Sequence[PromptImage]) -> list[dict[str, Any]]:
    """The parts of a document, with which a message then begins.

    They end with a blank line. A tokenizer joins no words across it, so the text that follows does
    not change the document's own tokens.
    """
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    if text.strip():
        parts.append({"type": "text", "text": text.rstrip("\n") + "\n\n"})
    return parts


def with_text(message: Message, text: str) -> Message:
    """Replace a message's question, which is the last of its text parts."""
    content = message["content"]
    if isinstance(content, str):
        return message | {"content": text}
    kept = content[:-1] if content[-1]["type"] == "text" else content
    return message | {"content": [*kept, {"type": "text", "text": text}]}


def image_parts(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The image parts of all messages, in order."""
    for message in messages:
        if not isinstance(message["content"], str):
            yield from (part for part in message["content"] if part["type"] == "image")


def joined_texts(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Join neighbouring texts of a message, since templates that trim each text would make their
    words run together.
    """
    return [
        message
        if isinstance(message["content"], str)
        else message | {"content": _joined(message["content"])}
        for message in map(dict, messages)
    ]


def _joined(parts: Sequence[Mapping[str, Any]]) -> list[Message]:
    joined: list[Message] = []
    for part in parts:
        if joined and joined[-1]["type"] == part["type"] == "text":
            joined[-1] = {"type": "text", "text": joined[-1]["text"] + part["text"]}
        else:
            joined.append(dict(part))
    return joined
