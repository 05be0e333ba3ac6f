"""The chat template of a checkpoint: its own, or the family's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_llama4.errors import CheckpointError
from mlx_llama4.files.foreign import stand_in
from mlx_llama4.files.json_file import read_json

# The format of Meta's prompt_format.md for Llama 4, with the same ids as the released template.
# The system text is trimmed and tool results become JSON; everything else stays as is, with images
# in their places. The system message describes the tools, so a user's message is not changed. Calls
# are written in the form that the description asks for.
DEFAULT_TEMPLATE = """\
{%- set about_tools -%}
You can call the functions below, which are described in JSON. Call them only if that helps with \
what is asked, and give every argument by its name. To call, answer with a list of calls and \
nothing else, like this:
[first_function(name="a text", count=2), second_function()]
Write nothing after the calls. If one of them is wrong, none is run.
What they return comes in the next messages; answer in words then.

{{ tools | map(attribute="function") | list | tojson(indent=4) if tools }}
{%- endset -%}
{%- macro call(called) -%}
    {{- called.name ~ "(" -}}
    {%- for name, value in called.arguments.items() -%}
        {{- ", " if not loop.first -}}
        {{- name ~ "=" -}}
        {%- if value is boolean or value is none -%}{{- value -}}
        {%- else -%}{{- value | tojson -}}{%- endif -%}
    {%- endfor -%}
    {{- ")" -}}
{%- endmacro -%}
{{- bos_token -}}
{%- if tools and (not messages or messages[0].role != "system") -%}
    {{- "<|header_start|>system<|header_end|>\\n\\n" ~ about_tools ~ "<|eot|>" -}}
{%- endif -%}
{%- for message in messages -%}
    {%- set role = "ipython" if message.role == "tool" else message.role -%}
    {{- "<|header_start|>" ~ role ~ "<|header_end|>\\n\\n" -}}
    {%- if role == "system" and loop.first -%}
        {%- set text = message.content -%}
        {{- (text if text is string else text | join(attribute="text")) | trim -}}
        {{- "\\n\\n" ~ about_tools if tools -}}
    {%- elif role == "ipython" -%}
        {{- message.content | tojson -}}
    {%- elif message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {{- "<|image|>" if part.type == "image" else part.text -}}
        {%- endfor -%}
    {%- endif -%}
    {%- if message.tool_calls -%}
        {{- "[" -}}
        {%- for called in message.tool_calls -%}
            {{- ", " if not loop.first -}}
            {{- call(called.function) -}}
        {%- endfor -%}
        {{- "]" -}}
    {%- endif -%}
    {{- "<|eot|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|header_start|>assistant<|header_end|>\\n\\n" -}}
{%- endif -%}
"""


def load_chat_template(folder: Path, tokenizer_config: Mapping[str, Any] | None = None) -> str:
    """Return the checkpoint's own template, or ours if it has none.

    tokenizer_config: the raw tokenizer_config.json, if already read.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as failure:
            raise CheckpointError(f"cannot read {path}: {failure}") from None
        if (problem := stand_in(path, source.encode())) is not None:
            raise CheckpointError(problem)
        return source
    known = {"chat_template.json": None, "tokenizer_config.json": tokenizer_config}
    for name, raw in known.items():
        if raw is not None or (folder / name).is_file():
            template = (read_json(folder / name) if raw is None else raw).get("chat_template")
            if isinstance(template, list):  # several, by name
                entries = [entry for entry in template if isinstance(entry, Mapping)]
                named = {entry.get("name"): entry.get("template") for entry in entries}
                template = named.get("default")
            if template is None:
                continue
            if not isinstance(template, str):
                raise CheckpointError(f"{folder / name}: chat_template is not a string")
            return template
    return DEFAULT_TEMPLATE
