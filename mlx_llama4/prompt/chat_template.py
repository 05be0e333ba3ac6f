"""Messages → a sequence of special tokens and plain text, by a Jinja chat template.

The template is the checkpoint's own, run in Jinja's immutable sandbox, or ours for the same
format. Untrusted text is marked before it goes in: each character that could begin a special
token's name gets a mark after it. Whatever the template does with the text (trim it, join it, dump
it as JSON), no special token is recognised in it afterwards. Then the marks are removed.
"""

import datetime
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlx_llama4.errors import CheckpointError, PromptError
from mlx_llama4.prompt.checks import check_definitions
from mlx_llama4.prompt.messages import image_parts

# Unicode noncharacters, which text should not contain; if it does, they are escaped.
ESCAPE = "\ufdd0"
MARK = ESCAPE + "\ufdd1"
LITERAL = ESCAPE + "\ufdd2"
IDS_BEGIN, IDS_END = ESCAPE + "\ufdd3", "\ufdd4"
DEFINED = ESCAPE + "\ufdd5"  # precedes the name in each tool definition

PROBE = "probe"  # a word whose way through a template is followed
# For templates that put definitions into the system message, but only if there is one.
TOOLS_SYSTEM = {
    "role": "system",
    "content": "Call functions where that helps with what is asked; otherwise answer in words.",
}
# By default the released template puts them into the first user message, and drops its images.
IN_SYSTEM_MESSAGE = {"tools_in_user_message": False}


@dataclass(frozen=True)
class SpecialToken:
    name: str


@dataclass(frozen=True)
class PlainText:
    text: str


@dataclass(frozen=True)
class GivenIds:
    """Tokens that the model itself generated, used as they are instead of re-tokenising."""

    ids: tuple[int, ...]


Piece = SpecialToken | PlainText | GivenIds

IMAGE = SpecialToken("<|image|>")
TURN_ENDS = (SpecialToken("<|eot|>"), SpecialToken("<|eom|>"))


class ChatTemplate:
    """A Jinja chat template.

    special_names: the names of all special tokens. variables: the special tokens that templates
    refer to by variables (bos_token, eos_token, …).
    """

    def __init__(self, source: str, special_names: Sequence[str], variables: Mapping[str, str]):
        from mlx_llama4.prompt.template_limits import LimitedEnvironment, metered

        # Not one pattern of all 1,100 names: compiling that takes 0.1 s.
        self._names = frozenset(special_names)
        self._lengths = sorted({len(name) for name in special_names}, reverse=True)
        beginnings = "|".join(sorted({re.escape(name[:2]) for name in special_names})) or "(?!)"
        self._ids_or_beginning = re.compile(f"{IDS_BEGIN}(\\d+){IDS_END}|(?={beginnings})")
        self._variables = dict(variables)
        self.source = source
        starts = "".join(sorted({name[0] for name in special_names}))
        self._starts = re.compile(f"[{re.escape(starts)}]") if starts else re.compile("(?!)")
        environment = LimitedEnvironment(
            {"tojson": _to_json},
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        # This tag marks the assistant's words for training; it has no use here.
        source = re.sub(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})", _as_condition, source)
        try:
            with metered():
                self._template = environment.from_string(source)
        except RecursionError:
            raise CheckpointError(
                "the checkpoint's chat template is broken: it is nested too deeply"
            ) from None
        except Exception as failure:  # Python's compiler has limits of its own
            raise CheckpointError(f"the checkpoint's chat template is broken: {failure}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Piece]:
        """Render the conversation into pieces. Neighbouring plain texts form one piece, so that
        they are tokenised together, as in the reference.

        A message may have `token_ids`, which replace its content. tools: definitions that the
        template must show. Raises PromptError if it does not, or if it refuses the messages.
        """
        if not tools:
            return self._render(messages, add_generation_prompt)[0]
        check_definitions(tools)
        messages = [_one_text(message) for message in messages]
        images = sum(1 for _ in image_parts(messages))
        opened = messages and messages[0]["role"] == "system"
        with_system = messages if opened else [TOOLS_SYSTEM, *messages]
        refusal = None
        for conversation, variables in ((messages, {}), (with_system, IN_SYSTEM_MESSAGE)):
            try:
                pieces, defined = self._render(
                    conversation, add_generation_prompt, tools, variables
                )
            except PromptError as failure:
                if conversation is messages:
                    refusal = failure
                continue
            if defined >= len(tools) and pieces.count(IMAGE) == images:
                return pieces
        what = "images together with tools" if images else "tools"
        raise refusal or PromptError(
            f"this checkpoint's chat template does not show {what} to the model; go on without"
        )

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> tuple[list[Piece], int]:
        """Return the pieces, and how many tool definitions are among them."""
        given: list[Mapping[str, Any]] = []
        marked = [self._mark_message(message, given) for message in messages]
        arguments = {
            "add_generation_prompt": add_generation_prompt,
            "tools": [self._mark_definition(tool) for tool in tools] if tools else None,
            **(variables or {}),
        }
        text = self._run_template(messages=marked, **arguments)
        missing = [at for at, one in enumerate(marked) if not _shown(one, text)]
        if missing:
            self._check_shown(marked, missing, arguments)
        return list(self._pieces(text, given)), text.count(DEFINED)

    def _check_shown(
        self, marked: list[dict[str, Any]], missing: list[int], arguments: Mapping[str, Any]
    ) -> None:
        """Raises PromptError if the template leaves out what one of the `missing` messages says.

        A template may change words (dump them as JSON, say), but a plain word stays one, if only in
        capitals.
        """
        words = {at: f"{PROBE}{at}x" for at in missing}
        probed = [_saying(words[at], one) if at in words else one for at, one in enumerate(marked)]
        text = self._run_template(messages=probed, **arguments).lower()
        for at, word in words.items():
            if word not in text:
                role = marked[at]["role"]
                raise PromptError(
                    f"this checkpoint's chat template leaves out what the {role} message says; "
                    "take the template out of the folder, and the family's own is used"
                )

    @functools.cached_property
    def _wants(self) -> Literal["text", "parts", "either"]:
        """The form in which a message without pictures reaches the model."""
        results: list[str | None] = []
        for content in (PROBE, [{"type": "text", "text": PROBE}]):
            messages = [{"role": "user", "content": content}]
            try:
                text = self._run_template(messages=messages, add_generation_prompt=True, tools=None)
                results.append(text)
            except PromptError:
                results.append(None)
        as_text, as_parts = results
        if as_text == as_parts:
            return "either"
        if as_text is not None and PROBE in as_text:
            return "text"
        # A template that wants a text writes parts as Python does.
        parts_are_shown = as_parts is not None and PROBE in as_parts and "'type'" not in as_parts
        return "parts" if parts_are_shown else "text"

    def _in_form(self, content: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
        if isinstance(content, str):
            wants_parts = content and self._wants == "parts"
            return [{"type": "text", "text": content}] if wants_parts else content
        if self._wants == "text" and all(part["type"] == "text" for part in content):
            return "".join(part["text"] for part in content)
        return content

    def _run_template(self, **variables: Any) -> str:
        from mlx_llama4.prompt.template_limits import TemplateLimitError, metered

        try:
            with metered(_characters(variables)):
                return self._template.render(**self._variables | variables, documents=None)
        except TemplateLimitError as limit:
            raise PromptError(f"the chat template was stopped: {limit}") from None
        except RecursionError:
            raise PromptError("the chat template was stopped: it calls itself for ever") from None
        except Exception as failure:  # the template is foreign code and may raise anything
            raise PromptError(f"the chat template refuses these messages: {failure}") from None

    @functools.cached_property
    def _call_end(self) -> SpecialToken | None:
        """The token with which the template ends an assistant's message that calls tools."""
        call = {"name": "f", "arguments": {}}
        messages: list[Mapping[str, Any]] = [
            {"role": "user", "content": ""},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        try:
            pieces, _ = self._render(messages, add_generation_prompt=False)
        except PromptError:  # the template does not support calls
            return None
        return next((piece for piece in reversed(pieces) if piece in TURN_ENDS), None)

    def _mark_message(
        self, message: Mapping[str, Any], given: list[Mapping[str, Any]]
    ) -> dict[str, Any]:
        role, content = message["role"], message["content"]
        if message.get("token_ids"):
            given.append(message)
            ids = f"{IDS_BEGIN}{len(given) - 1}{IDS_END}"
            return {"role": role, "content": self._in_form(ids)}
        if not isinstance(content, str):
            content = [
                {"type": "text", "text": part["text"]}
                if part["type"] == "text"
                else {"type": "image"}
                for part in content
            ]
        marked = {"role": role, "content": self._in_form(self._mark(content))}
        if calls := message.get("tool_calls"):
            marked["tool_calls"] = [
                {"type": "function", "function": self._mark(call)} for call in calls
            ]
        return marked

    def _mark_definition(self, tool: Mapping[str, Any]) -> dict[str, Any]:
        marked = self._mark(tool)
        marked["function"]["name"] = DEFINED + marked["function"]["name"]
        return marked

    def _mark(self, value: Any) -> Any:
        """Mark every text in a value; of keys, only those that no template would look up."""
        if isinstance(value, str):
            escaped = value.replace(ESCAPE, LITERAL)
            return self._starts.sub(lambda match: match[0] + MARK, escaped)
        if isinstance(value, Mapping):
            return {
                key if self._is_plain_name(key) else self._mark(key): self._mark(item)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._mark(item) for item in value]
        return value

    def _is_plain_name(self, key: str) -> bool:
        return key.isidentifier() and not any(self._name_at(key, at) for at in range(len(key)))

    def _name_at(self, text: str, start: int) -> str | None:
        """The longest special token's name that begins at `start`, if any."""
        ends = (start + length for length in self._lengths)
        return next((text[start:end] for end in ends if text[start:end] in self._names), None)

    def _pieces(self, rendered: str, given: list[Mapping[str, Any]]) -> Iterator[Piece]:
        position = 0
        ends_calls = False
        for match in self._ids_or_beginning.finditer(rendered):
            start = match.start()
            name = None if match[1] else self._name_at(rendered, start)
            if start < position or not (match[1] or name):
                continue
            yield from _plain(rendered[position:start])
            position = start + len(name or match[0])
            if name is None:
                message = given[int(match[1])]
                yield GivenIds(tuple(message["token_ids"]))
                ends_calls = bool(message.get("tool_calls"))
                continue
            piece = SpecialToken(name)
            if ends_calls and piece in TURN_ENDS:
                # The template saw a message without calls, which may end with another token.
                piece = self._call_end or piece
            ends_calls = False
            yield piece
        yield from _plain(rendered[position:])


def _characters(value: Any) -> int:
    """Of all texts in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0


def _texts(message: Mapping[str, Any]) -> list[str]:
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


def _shown(message: Mapping[str, Any], rendered: str) -> bool:
    """Is what a message says in the rendered text, as it is but for space around it? Words beside
    tool calls are not asked for: templates choose between the two.
    """
    if message.get("tool_calls"):
        return True
    return all(text.strip() in rendered for text in _texts(message))


def _saying(word: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with `word` as its text."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": word}
    kept = [part for part in content if part["type"] != "text"]
    return {**message, "content": [*kept, {"type": "text", "text": word}]}


def _plain(marked: str) -> Iterator[PlainText]:
    if text := marked.replace(DEFINED, "").replace(MARK, "").replace(LITERAL, ESCAPE):
        yield PlainText(text)


def _one_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Join content that is only texts into one: templates put tools in front of a text only."""
    content = message["content"]
    if isinstance(content, str) or any(part["type"] != "text" for part in content):
        return message
    return {**message, "content": "".join(part["text"] for part in content)}


def _as_condition(tag: re.Match[str]) -> str:
    return f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}"


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which the reference's templates do not expect.
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if not ensure_ascii:
        return text
    # Restore the marks, which the dump has escaped. After a backslash, itself escaped, the rest is
    # plain text.
    return re.sub(
        r"(?<!\\)((?:\\\\)*)\\u(fdd[0-5])",
        lambda escaped: escaped[1] + chr(int(escaped[2], 16)),
        text,
    )


def _strftime_now(format_: str) -> str:
    return datetime.datetime.now().strftime(format_)


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
