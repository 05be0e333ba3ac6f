"""STUB until i6tools lands."""
from dataclasses import dataclass
CALL_MARKERS = ("<|python_start|>", "<|python_end|>")
@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: dict
@dataclass(frozen=True)
class Reply:
    text: str
    calls: tuple
    refused: str | None
def parse_reply(text, names):
    return Reply(text, (), None)
def tool_names(tools):
    return [t["function"]["name"] for t in tools]
