"""Find the tool calls in a reply's text. Nothing in a reply is ever evaluated.

Llama 4 models write calls in several ways, whatever they were told:
    [get_weather(city="Oslo"), get_time()]        Meta's prompt_format.md
    <|python_start|>[…]<|python_end|>             what templates wrap calls in
    {"name": "get_weather", "parameters": {…}}    what the released template asks for
    <function=get_weather>{…}</function>          Meta's example of a format of one's own, also
                                                  without its end, as Meta's own reader takes it
    <tool_call>{"name": …}</tool_call>            other families' habit
Each may follow some words, repeat several times, or fill a reply that is a single block of code.
A call counts only if it ends the reply: one inside prose, or in a block of code after prose, is an
example. Arguments are literals and have names.
"""

import itertools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mlx_llama4.prompt.literals import NAME, Reader, UnreadableError

PYTHON_START, PYTHON_END = "<|python_start|>", "<|python_end|>"
MAX_CALLS = 32
MAX_LENGTH = 100_000  # characters of a reply's calls

# Names must match known ones exactly; some APIs have dots and hyphens in theirs.
CALL = re.compile(r"([\w.\-]++)\s*+\(")
TAG = re.compile(r"<function=([\w.\-]++)>")
WRAPPER, WRAPPER_END = "<tool_call>", "</tool_call>"
BEGINNING = re.compile(rf"\[\s*+(?:{CALL.pattern}|\{{)|\{{|{TAG.pattern}|{WRAPPER}")
SEPARATORS = re.compile(r"[\s;,]*+")
FENCE = "```"
FENCED = re.compile(r"```[\w\-]*+[^\S\n]*+\n(.*)```", re.DOTALL)
JSON_BEGINNING = re.compile(r"""(?:\[\s*+)?\{\s*+["']""")
JSON_NAME = re.compile(r"""["']name["']\s*+:\s*+["']([^"']*+)["']""")
JSON_ARGUMENTS = re.compile(r"""["'](?:parameters|arguments)["']\s*+:""")
JSON_HEAD = 400  # characters within which a call in JSON says its name


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """A reply, split into its text and its tool calls."""

    text: str  # without the calls
    calls: tuple[ToolCall, ...] = ()
    # Why something that looked like a call cannot be run. Then `calls` is empty and `text` is the
    # whole reply.
    refused: str | None = None


class _UnknownToolError(UnreadableError):
    """A well-formed call of an unknown tool."""


class _NoCallsError(UnreadableError):
    """The text is data or prose, not calls."""


class _TextFollowsError(UnreadableError):
    """Something else follows the calls."""


def parse_reply(text: str, names: Collection[str]) -> Reply:
    """Split a reply into text and calls. Never raises.

    text: with <|python_start|> and <|python_end|> written out. names: of the known tools.
    """
    before, started, body = text.partition(PYTHON_START)
    if not started:
        before, body = "", text
    elif (marked := _marked_calls(text, names)) is not None:
        return marked
    body = body.replace(PYTHON_START, "\n").replace(PYTHON_END, "\n" if started else "")
    try:
        said, calls = _find_calls(body, names)
    except _NoCallsError:
        refused = None
        if started and body.strip():
            refused = f"what comes after {PYTHON_START} is not a tool call"
        return Reply(before + body, refused=refused)
    except UnreadableError as refusal:
        return Reply(before + body, refused=str(refusal))
    return Reply((before + said).strip(), tuple(calls))


def _marked_calls(text: str, names: Collection[str]) -> Reply | None:
    """Calls between the two marks, which set them off from the words around them. None unless words
    follow, and each pair of marks holds calls and nothing else.
    """
    before, *parts = text.split(PYTHON_START)
    words: list[str] = []
    calls: list[ToolCall] = []
    for part in parts:
        marked, ended, after = part.partition(PYTHON_END)
        if not ended:
            return None
        try:
            calls += _read_calls(marked.strip(), 0, names)
        except UnreadableError:
            return None
        words.append(after)
    followed = [after.strip() for after in words]
    if not any(followed) or len(calls) > MAX_CALLS or any(map(BEGINNING.match, followed)):
        return None
    return Reply((before + "".join(words)).strip(), tuple(calls))


def _find_calls(body: str, names: Collection[str]) -> tuple[str, list[ToolCall]]:
    """Return the text before the calls, and the calls. Raises UnreadableError."""
    content = body.strip()
    if (fenced := FENCED.fullmatch(content)) and FENCE not in fenced[1]:
        content = fenced[1].strip()
    try:
        return "", _read_calls(content, 0, names)
    except _UnknownToolError:
        raise
    except UnreadableError as refusal:
        if not isinstance(refusal, _NoCallsError) and _looks_like_calls(content, names):
            raise
    return _find_after_text(content, names)


def _find_after_text(content: str, names: Collection[str]) -> tuple[str, list[ToolCall]]:
    refusal: UnreadableError | None = None
    if content.endswith(("]", "}", "</function>", WRAPPER_END)):
        for beginning in BEGINNING.finditer(content, max(0, len(content) - MAX_LENGTH)):
            start = beginning.start()
            if not _names_known_tool(beginning, names) or content.count(FENCE, 0, start) % 2:
                continue
            try:
                return content[:start], _read_calls(content, start, names)
            except (_NoCallsError, _TextFollowsError, _UnknownToolError):
                continue
            except UnreadableError as failure:
                refusal = refusal or failure
    raise refusal or _NoCallsError


def _names_known_tool(beginning: re.Match[str], names: Collection[str]) -> bool:
    if name := beginning[1] or beginning[2]:
        return name in names
    start = beginning.start()
    named = JSON_NAME.search(beginning.string, start, start + JSON_HEAD)
    return named is not None and named[1] in names


def _looks_like_calls(content: str, names: Collection[str]) -> bool:
    """Whether a reply that cannot be read as calls was meant to be calls."""
    if content.startswith(WRAPPER):
        return True
    called = CALL.match(content.removeprefix("[").lstrip()) or TAG.match(content)
    if called:
        is_close = called[0].endswith((called[1] + "(", ">"))  # no word before brackets in prose
        return is_close and (called[1] in names or content[0] == "<" or _is_one_list(content))
    if JSON_BEGINNING.match(content) and JSON_NAME.search(content, 0, JSON_HEAD):
        return JSON_ARGUMENTS.search(content) is not None
    return _is_one_list(content) and re.search(r"[\w)\]]\(", content) is not None


def _is_one_list(content: str) -> bool:
    """Whether the last character closes the first bracket, judging by brackets alone."""
    if not (content.startswith("[") and content.endswith("]")):
        return False
    depths = itertools.accumulate(
        (character == "[") - (character == "]") for character in content[:-1]
    )
    return all(depth > 0 for depth in depths)


def _read_calls(content: str, start: int, names: Collection[str]) -> list[ToolCall]:
    """Read `content` from `start` to its end as calls. Raises UnreadableError."""
    reader = Reader(content, start)
    calls: list[ToolCall] = []
    while reader.match(SEPARATORS) and reader.position < len(content):
        if not calls and len(content) - start > MAX_LENGTH:
            _check_begins(reader)
            raise UnreadableError(f"calls of more than {MAX_LENGTH:,} characters are not taken")
        calls += _item(reader, names, is_first=not calls)
        if len(calls) > MAX_CALLS:
            raise UnreadableError(f"more than {MAX_CALLS} calls at once are not taken")
    if not calls:
        raise _NoCallsError
    unknown = next((call.name for call in calls if call.name not in names), None)
    if unknown is not None:  # it may be empty
        known = ", ".join(sorted(names)) or "none"
        raise _UnknownToolError(f"there is no tool {unknown[:60]!r}; there are: {known}")
    return calls


def _check_begins(reader: Reader) -> None:
    if not BEGINNING.match(reader.text, reader.position) and not CALL.match(
        reader.text, reader.position
    ):
        raise _NoCallsError


def _item(reader: Reader, names: Collection[str], is_first: bool) -> list[ToolCall]:
    """Read a list of calls, or a single call, perhaps in <tool_call>."""
    start = reader.position
    try:
        if reader.take(WRAPPER):
            calls = _item(reader, names, is_first=True)
            while reader.match(SEPARATORS) and not reader.take(WRAPPER_END):
                if reader.position == len(reader.text):
                    break  # the end of the reply ends it, too
                calls += _item(reader, names, is_first=False)
            return calls
        if reader.at("["):
            return _list(reader, names)
        if (call := _call(reader, names)) is not None:
            return [call]
    except _NoCallsError:
        pass
    if is_first:
        raise _NoCallsError
    reader.position = start
    try:
        reader.refuse("nothing but calls should come after a call")
    except UnreadableError as refusal:
        raise _TextFollowsError(str(refusal)) from None


def _list(reader: Reader, names: Collection[str]) -> list[ToolCall]:
    start = reader.position
    reader.take("[")
    calls: list[ToolCall] = []
    while not (calls and reader.take("]")):
        call = _call(reader, names)
        if call is None and not calls:
            reader.position = start
            reader.value()  # refuses anything that is not data either
            raise _NoCallsError
        if call is None:
            reader.refuse("a list of calls may hold nothing but calls of tools")
        calls.append(call)
        if not reader.take(",") and not reader.at("]"):
            reader.refuse("',' or ']' should come after a call")
    return calls


def _call(reader: Reader, names: Collection[str]) -> ToolCall | None:
    """Read a call; None if what comes next has none of the forms."""
    if reader.at("{"):
        return _json_call(reader.mapping(), names)
    if tag := reader.match(TAG):
        arguments = reader.mapping()
        reader.take("</function>")
        return ToolCall(tag[1], arguments)
    if called := reader.match(CALL):
        return ToolCall(called[1], _arguments(reader))
    return None


def _arguments(reader: Reader) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    while not reader.take(")"):
        start = reader.position
        name = reader.match(NAME)
        if not name or not reader.take("=") or reader.at("="):
            reader.position = start
            reader.refuse("every argument must be given as name=value")
        if name[0] in arguments:
            raise UnreadableError(f"the argument {name[0][:40]!r} is given twice")
        arguments[name[0]] = reader.value()
        if not reader.take(",") and not reader.at(")"):
            reader.refuse("',' or ')' should come after an argument")
    return arguments


def _json_call(said: Mapping[str, Any], names: Collection[str]) -> ToolCall | None:
    """{"name": …, "parameters" or "arguments": {…}}, maybe inside {"function": {…}}. Arguments may
    be null or, if the name is that of a tool, absent.
    """
    inner = said.get("function")
    if isinstance(inner, dict) and not said.keys() - {"type", "id", "function"}:
        return _json_call(inner, names)
    name = said.get("name")
    given = [key for key in ("parameters", "arguments") if key in said]
    if not isinstance(name, str):
        return None
    if not given:
        is_call = name in names and not said.keys() - {"type", "id", "name"}
        return ToolCall(name, {}) if is_call else None
    if others := said.keys() - {"type", "id", "name", *given}:
        raise UnreadableError(f"a call in JSON has the key {sorted(others)[0][:40]!r}")
    if len(given) > 1:
        raise UnreadableError("a call in JSON has both parameters and arguments")
    arguments = {} if said[given[0]] is None else said[given[0]]
    if isinstance(arguments, str):  # JSON within JSON, as in OpenAI's interface
        reader = Reader(arguments)
        arguments = reader.mapping()
        if reader.match(SEPARATORS) and reader.position < len(reader.text):
            reader.refuse("nothing should come after the arguments")
    if not isinstance(arguments, dict):
        raise UnreadableError(f"the {given[0]} of a call in JSON must be a dict")
    return ToolCall(name, arguments)
