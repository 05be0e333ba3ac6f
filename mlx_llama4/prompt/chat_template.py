"""Messages → a sequence of special tokens and plain text, by a Jinja chat template.

The template is the checkpoint's own, run in Jinja's immutable sandbox, or ours for the same
format. Untrusted text goes through it marked: after each character that could begin a special
token's name stands a mark, so that whatever the template does with the text (trim it, join it,
dump it as JSON), no name is recognised in what comes out of it; then the marks are removed.
"""

import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_llama4.errors import CheckpointError, PromptError
from mlx_llama4.json_file import read_json

ROLES = ("system", "user", "assistant", "tool", "ipython")

# The format of Meta's prompt_format.md for Llama 4, in the same ids as the released template: the
# opening system text trimmed, results of tools as JSON, everything else as it is, images where
# they stand in the message.
DEFAULT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- set role = "ipython" if message.role == "tool" else message.role -%}
    {{- "<|header_start|>" ~ role ~ "<|header_end|>\\n\\n" -}}
    {%- if role == "system" and loop.first -%}
        {%- set text = message.content -%}
        {{- (text if text is string else text | join(attribute="text")) | trim -}}
    {%- elif role == "ipython" -%}
        {{- message.content | tojson -}}
    {%- elif message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {{- "<|image|>" if part.type == "image" else part.text -}}
        {%- endfor -%}
    {%- endif -%}
    {{- "<|eot|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|header_start|>assistant<|header_end|>\\n\\n" -}}
{%- endif -%}
"""

# Unicode noncharacters, which no text is meant to hold; should it, they are escaped.
ESCAPE = "\ufdd0"
MARK = ESCAPE + "\ufdd1"
LITERAL = ESCAPE + "\ufdd2"
IDS_BEGIN, IDS_END = ESCAPE + "\ufdd3", "\ufdd4"


@dataclass(frozen=True)
class SpecialToken:
    name: str


@dataclass(frozen=True)
class PlainText:
    text: str


@dataclass(frozen=True)
class GivenIds:
    """Tokens that the model itself produced, taken over without being re-tokenised."""

    ids: tuple[int, ...]


Piece = SpecialToken | PlainText | GivenIds


class ChatTemplate:
    """special_names: of all special tokens. variables: what templates call some of them by
    (bos_token, eos_token, …).
    """

    def __init__(self, source: str, special_names: Sequence[str], variables: Mapping[str, str]):
        from jinja2 import TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # The longest name where several would do; never anything where there is none.
        names = sorted(special_names, key=len, reverse=True)
        self._special = "|".join(map(re.escape, names)) or "(?!)"
        self._variables = dict(variables)
        starts = "".join(sorted({name[0] for name in special_names}))
        self._starts = re.compile(f"[{re.escape(starts)}]") if starts else re.compile("(?!)")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        # Marks what an assistant said, for training; here it is only in the way.
        source = re.sub(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})", _as_condition, source)
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as failure:
            raise CheckpointError(f"the checkpoint's chat template is broken: {failure}") from None

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool
    ) -> list[Piece]:
        """Pieces of the conversation; neighbouring plain texts are one piece, so that they are
        tokenised together as the reference does.

        A message may hold `token_ids` in place of its content's ids. Raises PromptError if the
        template refuses the messages.
        """
        given: list[tuple[int, ...]] = []
        marked = [self._mark_message(message, given) for message in messages]
        try:
            text = self._template.render(
                **self._variables,
                messages=marked,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
            )
        except Exception as failure:  # the template is foreign code and may raise anything
            raise PromptError(f"the chat template refuses these messages: {failure}") from None
        return list(self._pieces(text, given))

    def _mark_message(
        self, message: Mapping[str, Any], given: list[tuple[int, ...]]
    ) -> dict[str, Any]:
        role, content = message["role"], message["content"]
        if message.get("token_ids"):
            given.append(tuple(message["token_ids"]))
            return {"role": role, "content": f"{IDS_BEGIN}{len(given) - 1}{IDS_END}"}
        if isinstance(content, str):
            return {"role": role, "content": self._mark(content)}
        parts = [
            {"type": "text", "text": self._mark(part["text"])}
            if part["type"] == "text"
            else {"type": "image"}
            for part in content
        ]
        return {"role": role, "content": parts}

    def _mark(self, text: str) -> str:
        text = text.replace(ESCAPE, LITERAL)
        return self._starts.sub(lambda match: match[0] + MARK, text)

    def _pieces(self, rendered: str, given: list[tuple[int, ...]]) -> Iterator[Piece]:
        position = 0
        for match in re.finditer(f"{IDS_BEGIN}(\\d+){IDS_END}|({self._special})", rendered):
            yield from _plain(rendered[position : match.start()])
            position = match.end()
            yield GivenIds(given[int(match[1])]) if match[1] else SpecialToken(match[2])
        yield from _plain(rendered[position:])


def load_chat_template(folder: Path) -> str:
    """The checkpoint's own template, or ours."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as failure:
            raise CheckpointError(f"cannot read {path}: {failure}") from None
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            template = read_json(folder / name).get("chat_template")
            if isinstance(template, list):  # several, by name
                entries = [entry for entry in template if isinstance(entry, Mapping)]
                named = {entry.get("name"): entry.get("template") for entry in entries}
                template = named.get("default")
            if template is None:
                continue
            if not isinstance(template, str):
                raise CheckpointError(f"{folder / name}: chat_template is no text")
            return template
    return DEFAULT_TEMPLATE


def _plain(marked: str) -> Iterator[PlainText]:
    if text := marked.replace(MARK, "").replace(LITERAL, ESCAPE):
        yield PlainText(text)


def check_message(message: Mapping[str, Any]) -> None:
    """Raises PromptError for a message of another form than processor.py's docstring says."""
    if unknown := message.keys() - {"role", "content", "token_ids"}:
        raise PromptError(f"a message has {sorted(unknown)[0]!r}, which is not supported")
    role, content, token_ids = (message.get(key) for key in ("role", "content", "token_ids"))
    if role not in ROLES:
        raise PromptError(f"a message has the role {role!r}; use one of {', '.join(ROLES)}")
    if token_ids and (role != "assistant" or not all(isinstance(i, int) for i in token_ids)):
        raise PromptError("only an assistant's message may have token_ids, and those are numbers")
    if isinstance(content, str):
        return
    if not isinstance(content, Sequence):
        raise PromptError(f"a message's content must be a text or a list, not {content!r}")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        is_text = kind == "text" and isinstance(part.get("text"), str)
        if not is_text and not (kind == "image" and "image" in part):
            raise PromptError(f"a message part must be a text or an image, not {part!r}")


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
    # Marks, which the dump has escaped, must be found again; a backslash before, itself escaped,
    # makes the rest plain text.
    return re.sub(
        r"(?<!\\)((?:\\\\)*)\\u(fdd[0-4])",
        lambda escaped: escaped[1] + chr(int(escaped[2], 16)),
        text,
    )


def _strftime_now(format_: str) -> str:
    return datetime.datetime.now().strftime(format_)


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
