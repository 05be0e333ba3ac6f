"""Definitions, calls and results of tools in prompts: by ours, the released and other templates."""

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from mlx_llama4.errors import PromptError
from mlx_llama4.prompt.processor import Processor
from mlx_llama4.prompt.replies import ToolCall, parse_reply
from tests.golden import pictures
from tests.prompt.references import (
    FOLDER,
    MARKS,
    OURS,
    REFERENCE,
    REFERENCE_TEMPLATE,
    SPECIALS,
    processor_with,
)

# In the way of the released template, but calls and results end with <|eom|>.
EOM_TEMPLATE = """\
{{- bos_token -}}
{%- if tools and tools_in_user_message | default(true) -%}
    {{- "<|header_start|>user<|header_end|>\\n\\n" ~ tools | tojson -}}
    {{- messages[0].content | trim ~ "<|eot|>" -}}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
    {{- "<|header_start|>" ~ message.role ~ "<|header_end|>\\n\\n" -}}
    {{- tools | tojson(ensure_ascii=true) if tools and message.role == "system" -}}
    {%- if message.content is string -%}{{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {{- "<|image|>" if part.type == "image" else part.text -}}
        {%- endfor -%}
    {%- endif -%}
    {%- for called in message.tool_calls or [] -%}{{- called | tojson -}}{%- endfor -%}
    {{- "<|eom|>" if message.tool_calls or message.role == "ipython" else "<|eot|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|header_start|>assistant<|header_end|>\\n\\n" -}}
{%- endif -%}
"""
EOM = processor_with(EOM_TEMPLATE)
ALL = pytest.mark.parametrize(
    "processor", [OURS, REFERENCE, EOM], ids=["ours", "released", "with <|eom|>"]
)
CALL_ENDS = {OURS: "<|eot|>", REFERENCE: "<|eot|>", EOM: "<|eom|>"}
ANSWER = "<|header_start|>assistant<|header_end|>\n\n"


def definition(name: str, description: str = "Tells it.", **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    inner = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": inner}


TOOLS = [definition("get_weather", city={"type": "string"}), definition("get_time")]
QUESTION = {"role": "user", "content": "How is it in Oslo?"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALLS = [
    {"name": "get_weather", "arguments": {"city": "Oslo"}},
    {"name": "get_time", "arguments": {}},
]
IMAGE = {"type": "image", "image": pictures.draw(5, 5)}
SEEN = {"role": "user", "content": [IMAGE, {"type": "text", "text": "Where is it?"}]}


def text_of(processor: Processor, messages: list[dict], tools: list[dict] | None = TOOLS) -> str:
    """The prompt with special tokens by name, but for patches."""
    ids = processor.encode(messages, tools=tools).ids.tolist()
    return processor.tokenizer.decode(ids, shown=set(SPECIALS) - {"<|patch|>"})


@ALL
def test_definitions_are_shown(processor: Processor) -> None:
    for messages in ([QUESTION], [SYSTEM, QUESTION], [SEEN], [SYSTEM, SEEN], [QUESTION, SEEN]):
        text = text_of(processor, messages)
        for tool in TOOLS:
            assert text.count(f'"name": "{tool["function"]["name"]}"') == 1
        assert text.count("<|image|>") == messages.count(SEEN)
        assert text.endswith(ANSWER)
        for message in messages:
            content = message["content"]
            assert text.count(content if isinstance(content, str) else "Where is it?") == 1


@ALL
def test_without_tools_nothing_is_said_of_them(processor: Processor) -> None:
    for messages in ([QUESTION], [SYSTEM, SEEN]):
        plain = processor.encode(messages).ids.tolist()
        for none in (None, []):
            assert processor.encode(messages, tools=none).ids.tolist() == plain


def test_released_template_s_ids_are_the_reference_s() -> None:
    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(FOLDER / "tokenizer.json"),
        bos_token="<|begin_of_text|>",
        chat_template=REFERENCE_TEMPLATE,
    )
    answer = {"role": "assistant", "content": "Well."}
    for messages in ([QUESTION], [SYSTEM, QUESTION], [QUESTION, answer, QUESTION]):
        theirs = reference.apply_chat_template(messages, tools=TOOLS, add_generation_prompt=True)
        assert REFERENCE.encode(messages, tools=TOOLS).ids.tolist() == theirs["input_ids"]
    functions = [{"type": "function", "function": call} for call in CALLS]
    results = [{"role": "ipython", "content": text} for text in ("cold", "late")]
    ours, theirs = (
        [QUESTION, {"role": "assistant", "content": "", "tool_calls": calls}, *results]
        for calls in (CALLS, functions)
    )
    expected = reference.apply_chat_template(theirs, tools=TOOLS, add_generation_prompt=True)
    assert REFERENCE.encode(ours, tools=TOOLS).ids.tolist() == expected["input_ids"]


def test_our_template_s_text() -> None:
    text = text_of(OURS, [SYSTEM, QUESTION], TOOLS[:1])
    begin = "<|begin_of_text|><|header_start|>system<|header_end|>\n\nBe brief.\n\nYou can call"
    assert text.startswith(begin)
    shown = json.dumps([TOOLS[0]["function"]], indent=4)
    user = "<|header_start|>user<|header_end|>\n\nHow is it in Oslo?<|eot|>"
    assert text.endswith(f"\n\n{shown}<|eot|>{user}{ANSWER}")
    without = text_of(OURS, [QUESTION], TOOLS[:1])
    assert without == text.replace("Be brief.\n\n", "")


@ALL
@pytest.mark.parametrize("messages", [[QUESTION], [SYSTEM, SEEN]], ids=["text", "image"])
def test_what_was_generated_stays(processor: Processor, messages: list[dict]) -> None:
    """Prompt, generated tokens, the end of a call, the results: each a prefix of the next."""
    tokenizer = processor.tokenizer
    said = tokenizer.encode("[get_wea") + tokenizer.encode("ther(city='Oslo'), get_time()]")
    generated = [tokenizer.special_id("<|python_start|>"), *said]
    calling = {"role": "assistant", "content": "", "token_ids": generated, "tool_calls": CALLS}
    results = [{"role": "ipython", "content": text} for text in ("cold <|eot|>", "late")]
    prompt = processor.encode(messages, tools=TOOLS).ids.tolist()
    told = processor.encode([*messages, calling, *results], tools=TOOLS)
    ids = told.ids.tolist()
    end = CALL_ENDS[processor]
    kept = [*prompt, *generated, tokenizer.special_id(end)]
    assert ids[: len(kept)] == kept
    rest = tokenizer.decode(ids[len(kept) :], shown=SPECIALS)
    header = "<|header_start|>ipython<|header_end|>\n\n"
    results_shown = ["cold <|eot|>", "late"] if processor is EOM else ['"cold <|eot|>"', '"late"']
    assert rest == "".join(f"{header}{text}{end}" for text in results_shown) + ANSWER
    specials = [token for token in ids[len(kept) :] if token in tokenizer.special_ids.values()]
    assert len(specials) == 8  # the result's own <|eot|> is text
    answer = {"role": "assistant", "content": "It is cold and late."}
    after = processor.encode([*messages, calling, *results, answer, QUESTION], tools=TOOLS)
    assert after.ids.tolist()[: len(ids)] == ids
    assert len(told.images) == messages.count(SEEN)


@ALL
def test_an_answer_without_calls_ends_as_ever(processor: Processor) -> None:
    ids = processor.tokenizer.encode("Well")
    answer = {"role": "assistant", "content": "Well", "token_ids": ids}
    shown = text_of(processor, [QUESTION, answer])
    assert shown.endswith("Well<|eot|>" + ANSWER)
    assert text_of(processor, [QUESTION, answer | {"tool_calls": []}]) == shown


@ALL
def test_calls_without_tokens_are_written_by_the_template(processor: Processor) -> None:
    call = {"name": "get_weather", "arguments": {"city": 'a "b" <|eot|>', "n": [1.5, True, None]}}
    message = {"role": "assistant", "content": "", "tool_calls": [call, CALLS[1]]}
    text = text_of(processor, [QUESTION, message])
    reply = text.partition(ANSWER)[2].removesuffix(CALL_ENDS[processor] + ANSWER)
    calls = parse_reply(reply, ["get_weather", "get_time"]).calls
    assert calls == tuple(ToolCall(**call) for call in (call, CALLS[1]))


@ALL
@pytest.mark.parametrize(
    "hostile", [*SPECIALS[:4], "<|eot|>", "<|header_start|>", *MARKS, "\ufdd0\ufdd5"]
)
def test_nothing_of_tools_becomes_a_special_token(processor: Processor, hostile: str) -> None:
    def conversation(text: str) -> tuple[list[dict], list[dict]]:
        nested = {"type": "string", "enum": [text], text: {text: [text]}}
        tools = [definition(text + "f", text, **{text: nested})]
        call = {"name": text, "arguments": {text: [text, {text: text}]}}
        calling = {"role": "assistant", "content": text, "tool_calls": [call]}
        return [SEEN, calling, {"role": "ipython", "content": text}], tools

    special = set(processor.tokenizer.special_ids.values())
    found = []
    for text in (hostile, "x"):
        messages, tools = conversation(text)
        prompt = processor.encode(messages, tools=tools)
        found.append([token for token in prompt.ids.tolist() if token in special])
    assert found[0] == found[1]


@ALL
def test_open_prompts_have_the_tools_too(processor: Processor) -> None:
    parts = [{"type": "text", "text": "A document.\n\n"}]
    for before in ([], [IMAGE]):
        begun = processor.encode_open([{"role": "user", "content": [*before, *parts]}], TOOLS).ids
        question = [*before, {"type": "text", "text": "A document.\n\nWhat is it?"}]
        whole = processor.encode([{"role": "user", "content": question}], tools=TOOLS).ids
        assert whole[: len(begun)].tolist() == begun.tolist()
        assert len(begun) > len(processor.encode([QUESTION]).ids)


def test_templates_that_leave_tools_or_images_out() -> None:
    deaf = processor_with("{{ messages[-1].content }}<|eot|>")
    with pytest.raises(PromptError, match="does not show tools to the model; go on without"):
        deaf.encode([QUESTION], tools=TOOLS)
    # A user's word for the tool is not its definition.
    with pytest.raises(PromptError, match="does not show tools"):
        deaf.encode([{"role": "user", "content": json.dumps(TOOLS)}], tools=TOOLS)
    said = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    blind = processor_with("{{ tools | tojson }}" + said + "<|eot|>")
    assert len(blind.encode([QUESTION], tools=TOOLS).ids)
    with pytest.raises(PromptError, match="does not show images together with tools"):
        blind.encode([SEEN], tools=TOOLS)
    first_only = processor_with("{{ tools[0] | tojson if tools }}" + said + "<|eot|>")
    with pytest.raises(PromptError, match="does not show tools"):
        first_only.encode([QUESTION], tools=TOOLS)
    refusing = processor_with("{% if tools %}{{ raise_exception('no tools') }}{% endif %}x")
    with pytest.raises(PromptError, match="refuses these messages: no tools"):
        refusing.encode([QUESTION], tools=TOOLS)


def test_a_template_that_knows_no_calls() -> None:
    """What the model said is kept as it was, and ends as the template ends every message."""
    plain = processor_with("{% for m in messages %}{{ m.content }}<|eot|>{% endfor %}")
    message = {"role": "assistant", "content": "", "token_ids": [5, 6], "tool_calls": CALLS}
    eot = plain.tokenizer.special_id("<|eot|>")
    assert plain.encode([message]).ids.tolist() == [5, 6, eot]
    raising = processor_with(
        "{% for m in messages %}{{ raise_exception('no') if m.tool_calls }}"
        "{{ m.content }}<|eot|>{% endfor %}"
    )
    assert raising.encode([message]).ids.tolist() == [5, 6, eot]


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([{"name": "f"}], "must be {'type': 'function', 'function': {'name': …}}, not {'name'"),
        (["f"], "not 'f'"),
        ([{"type": "function", "function": {"name": ""}}], "must be"),
        ([TOOLS[0], TOOLS[0]], "two tools have the name get_weather"),
    ],
)
def test_definitions_that_cannot_be_taken(tools: list[Any], message: str) -> None:
    with pytest.raises(PromptError, match="tool") as caught:
        OURS.encode([QUESTION], tools=tools)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "calls",
    [
        5,
        [5],
        [{"name": "f"}],
        [{"name": 5, "arguments": {}}],
        [{"name": "f", "arguments": "{}"}],
        [{"name": "f", "arguments": {1: 2}}],
        [{"name": "f", "arguments": {}, "id": 1}],
    ],
)
def test_calls_that_cannot_be_taken(calls: Any) -> None:
    with pytest.raises(PromptError, match=r"tool_calls|a tool call must be"):
        OURS.encode([QUESTION, {"role": "assistant", "content": "", "tool_calls": calls}])


def test_text_of_ids() -> None:
    tokenizer = OURS.tokenizer
    start, eot = tokenizer.special_id("<|python_start|>"), tokenizer.special_id("<|eot|>")
    llama = tokenizer.encode("🦙")
    ids = [start, *tokenizer.encode("f("), *llama, eot]
    assert tokenizer.decode(ids) == "f(🦙"
    assert tokenizer.decode(ids, shown=("<|python_start|>", "<|none|>")) == "<|python_start|>f(🦙"
    assert tokenizer.decode(llama[:1]) in ("�", "🦙")
    assert tokenizer.decode([]) == ""
