"""Refuse messages and tool definitions whose form we do not know."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_llama4.errors import PromptError

ROLES = ("system", "user", "assistant", "tool", "ipython")
KEYS = {"role", "content", "token_ids", "tool_calls"}


def check_message(message: Mapping[str, Any]) -> None:
    """Raise PromptError unless a message has the form that processor.py's docstring describes."""
    if unknown := message.keys() - KEYS:
        raise PromptError(f"a message has {sorted(unknown)[0]!r}, which is not supported")
    role, content, token_ids = (message.get(key) for key in ("role", "content", "token_ids"))
    if role not in ROLES:
        raise PromptError(f"a message has the role {role!r}; use one of {', '.join(ROLES)}")
    if token_ids and (role != "assistant" or not all(isinstance(i, int) for i in token_ids)):
        raise PromptError("only an assistant's message may have token_ids, and those are numbers")
    if calls := message.get("tool_calls"):
        _check_calls(role, calls)
    if isinstance(content, str):
        return
    if not isinstance(content, Sequence):
        raise PromptError(f"a message's content must be a text or a list, not {content!r}")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        is_text = kind == "text" and isinstance(part.get("text"), str)
        if not is_text and not (kind == "image" and "image" in part):
            raise PromptError(f"a message part must be a text or an image, not {part!r}")


def check_definitions(tools: Sequence[Mapping[str, Any]]) -> None:
    """Raise PromptError unless each is {"type": "function", "function": {"name": …, …}}."""
    names = set()
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name:
            raise PromptError(
                "a tool's definition must be {'type': 'function', 'function': {'name': …}}, "
                f"not {tool!r}"
            )
        if name in names:
            raise PromptError(f"two tools have the name {name}")
        names.add(name)


def _check_calls(role: str, calls: Any) -> None:
    if role != "assistant" or not isinstance(calls, Sequence):
        raise PromptError("only an assistant's message may have tool_calls, and those are a list")
    for call in calls:
        is_call = isinstance(call, Mapping) and call.keys() == {"name", "arguments"}
        if not (is_call and isinstance(call["name"], str) and _is_object(call["arguments"])):
            raise PromptError(
                f"a tool call must be {{'name': …, 'arguments': {{…}}}}, not {call!r}"
            )


def _is_object(arguments: Any) -> bool:
    return isinstance(arguments, Mapping) and all(isinstance(key, str) for key in arguments)
