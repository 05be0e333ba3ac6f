"""Messages → ids: the reference's, for what is trusted; plain text, for what is not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mlx_llama4.config import load_config
from mlx_llama4.errors import CheckpointError, ConfigError, PromptError
from mlx_llama4.prompt.processor import Processor
from mlx_llama4.prompt.template_source import DEFAULT_TEMPLATE, load_chat_template
from mlx_llama4.prompt.tokenizer import Tokenizer
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

GOLDEN_IDS = json.loads((Path(__file__).parents[1] / "golden" / "templates.json").read_text())
ROLES = ("system", "user", "assistant", "ipython", "tool")


TEMPLATES = pytest.mark.parametrize("processor", [OURS, REFERENCE], ids=["ours", "checkpoint's"])


def with_images(messages: list[dict], sizes: list[tuple[int, int]]) -> list[dict]:
    """The conversation with pictures in place of its bare image parts."""
    images = iter([pictures.draw(*size) for size in sizes])

    def filled(part: dict) -> dict:
        return part | {"image": next(images)} if part["type"] == "image" else part

    return [
        message
        if isinstance(message["content"], str)
        else message | {"content": [filled(part) for part in message["content"]]}
        for message in messages
    ]


def decoded(processor: Processor, ids: np.ndarray) -> bytes:
    return b"".join(processor.tokenizer.token_bytes(int(token)) for token in ids)


@TEMPLATES
@pytest.mark.parametrize("name", pictures.CONVERSATIONS)
def test_ids_are_the_reference_s(processor: Processor, name: str) -> None:
    messages, sizes = pictures.CONVERSATIONS[name]
    prompt = processor.encode(with_images(messages, sizes))
    assert prompt.ids.tolist() == GOLDEN_IDS[name]
    assert len(prompt.images) == len(sizes)


@TEMPLATES
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=4), system=st.none() | st.text())
def test_any_text_gives_the_reference_s_ids(
    processor: Processor, texts: list[str], system: str | None
) -> None:
    """But for names of special tokens, which the reference takes for the tokens themselves."""
    assume(not any(name in text for text in [*texts, system or ""] for name in SPECIALS))
    messages = [
        {"role": "assistant" if index % 2 else "user", "content": text}
        for index, text in enumerate(texts)
    ]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(FOLDER / "tokenizer.json"),
        bos_token="<|begin_of_text|>",
        chat_template=REFERENCE_TEMPLATE,
    )
    expected = reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert processor.encode(messages).ids.tolist() == expected


@TEMPLATES
@pytest.mark.parametrize("name", SPECIALS)
@pytest.mark.parametrize("role", ROLES)
def test_special_names_in_text_stay_text(processor: Processor, role: str, name: str) -> None:
    """Alone, amid text, and split over two parts of one message."""
    text = f"{name} and{name}{name}"
    halves = [{"type": "text", "text": half} for half in (name[:3], name[3:])]
    for content in (text, halves):
        if content is halves and role in ("ipython", "tool", "system"):
            continue  # templates take only the first part, or dump the list
        messages = [{"role": "user", "content": "Hi"}, {"role": role, "content": content}]
        if role == "system":
            messages.reverse()
        plain = [m | {"content": "x"} if m["role"] == role else m for m in messages]
        prompt, harmless = processor.encode(messages), processor.encode(plain)
        special = set(processor.tokenizer.special_ids.values())
        assert [i for i in prompt.ids if i in special] == [i for i in harmless.ids if i in special]
        assert name.encode() in decoded(processor, prompt.ids)


@TEMPLATES
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pieces=st.lists(
        st.sampled_from([*SPECIALS, *MARKS, "<", "<|", "|>"]) | st.text(max_size=5), max_size=8
    )
)
@example(list(MARKS))
@example(["<", "\ufdd0\ufdd1", "|eot|>"])
@example(["<\ufdd0\ufdd2|eot|>"])
def test_text_survives_whatever_it_is(processor: Processor, pieces: list[str]) -> None:
    """Also the characters that mark untrusted text on its way through the template."""
    text = "".join(pieces)
    prompt = processor.encode([{"role": "user", "content": f"[{text}]"}])
    special = set(processor.tokenizer.special_ids.values())
    bare = processor.encode([{"role": "user", "content": "[]"}])
    assert [i for i in prompt.ids if i in special] == [i for i in bare.ids if i in special]
    assert f"[{text}]".encode() in decoded(processor, prompt.ids)


def test_given_ids_are_taken_as_they_are() -> None:
    """ "Hello" cut in odd places is not what the tokenizer makes of "Hello"."""
    odd = OURS.tokenizer.encode("H") + OURS.tokenizer.encode("ello")
    assert odd != OURS.tokenizer.encode("Hello")
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "token_ids": odd},
        {"role": "user", "content": "Bye"},
    ]
    for processor in (OURS, REFERENCE):
        ids = processor.encode(messages).ids.tolist()
        first = processor.encode(messages[:1]).ids.tolist()
        assert ids[: len(first) + len(odd)] == first + odd


def test_image_ids() -> None:
    """2 rows of 1 tile: patches, y separator, patches, y separator, then the global tile."""
    image = {"type": "image", "image": pictures.draw(56, 112)}
    prompt = OURS.encode([{"role": "user", "content": [image]}])
    start = OURS.tokenizer.special_id("<|image_start|>")
    special = OURS.tokenizer.special_id
    patches = [special("<|patch|>")] * 4
    y = special("<|tile_y_separator|>")
    ids = prompt.ids.tolist()
    ids = ids[ids.index(start) :]
    end = [special("<|image|>"), *patches, special("<|image_end|>")]
    assert ids[: 1 + 10 + 6] == [start, *patches, y, *patches, y, *end]
    assert prompt.num_tiles == 3


@pytest.mark.parametrize("text", ["<|eot|>", *MARKS, "<\\", "naïve <b>"])
def test_json_in_templates(text: str) -> None:
    """Whatever way the template dumps it, the text comes out as JSON of itself."""
    for options in ("", "ensure_ascii=true", "indent=2, sort_keys=true", "separators=(',', ':')"):
        template = "{{ messages[0].content | tojson(" + options + ") }}"
        ids = processor_with(template).encode([{"role": "user", "content": text}]).ids
        dumped = decoded(OURS, ids).decode()
        assert json.loads(dumped) == text
        assert dumped.isascii() or "ascii" not in options or max(text) >= "\ufdd0"


def test_templates_written_for_others() -> None:
    hello = [{"role": "user", "content": "Hi"}]
    marked = "{% generation %}{{ messages[0].content }}{%- endgeneration %}{{ eos_token }}"
    ids = processor_with(marked).encode(hello).ids
    assert ids.tolist() == [*OURS.tokenizer.encode("Hi"), OURS.tokenizer.special_id("<|eot|>")]


BAD_MESSAGES = {
    "the role 'robot'": {"role": "robot", "content": "x"},
    "the role None": {"content": "x"},
    "not {'type': 'video'}": {"role": "user", "content": [{"type": "video"}]},
    "not {'type': 'image'}": {"role": "user", "content": [{"type": "image"}]},
    "not {'type': 'text'}": {"role": "user", "content": [{"type": "text"}]},
    "not 'Hi'": {"role": "user", "content": ["Hi"]},
    "a text or a list, not None": {"role": "user"},
    "a text or a list, not 5": {"role": "user", "content": 5},
    "has 'name', which is not supported": {"role": "ipython", "content": "", "name": "f"},
    "a tool call must be {'name': …, 'arguments': {…}}, not {'function'": {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f"}}],
    },
    "only an assistant's message may have tool_calls": {
        "role": "user",
        "content": "",
        "tool_calls": [{"name": "f", "arguments": {}}],
    },
    "only an assistant's": {"role": "user", "content": "Hi", "token_ids": [1008]},
    "those are numbers": {"role": "assistant", "content": "Hi", "token_ids": ["a"]},
    "lone surrogate": {"role": "user", "content": "caf\udce9"},
}


@pytest.mark.parametrize("message", BAD_MESSAGES)
def test_messages_that_cannot_be_taken(message: str) -> None:
    with pytest.raises(PromptError) as caught:
        OURS.encode([BAD_MESSAGES[message]])
    assert message in str(caught.value)


def test_templates_that_refuse_or_fail() -> None:
    refusing = processor_with("{{ raise_exception('only cats') }}")
    with pytest.raises(PromptError, match="only cats"):
        refusing.encode([{"role": "user", "content": "x"}])
    for failing in ("{{ 1/0 }}", "{{ range(10**12) }}", "{{ nothing.at.all }}"):
        with pytest.raises(PromptError, match="refuses"):
            processor_with(failing).encode([{"role": "user", "content": "x"}])


def test_template_and_images_must_agree() -> None:
    image = {"type": "image", "image": pictures.draw(5, 5)}
    message = {"role": "user", "content": [image]}
    with pytest.raises(PromptError, match="left out 1 of 1 images"):
        processor_with("nothing").encode([message])
    with pytest.raises(PromptError, match="more images"):
        processor_with("<|image|><|image|>").encode([message])
    blind = Processor(OURS.tokenizer, OURS.template)
    with pytest.raises(PromptError, match="no vision tower"):
        blind.encode([message])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_templates_run_in_a_sandbox(source: str) -> None:
    with pytest.raises(PromptError, match="refuses"):
        processor_with(source).encode([{"role": "user", "content": "x"}])


def test_where_the_template_comes_from(tmp_path: Path) -> None:
    assert load_chat_template(tmp_path) == DEFAULT_TEMPLATE
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one"}))
    assert load_chat_template(tmp_path) == "one"
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": "two"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert load_chat_template(tmp_path) == "two"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "three"}))
    assert load_chat_template(tmp_path) == "three"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(CheckpointError, match="chat_template is not a string"):
        load_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("four")
    assert load_chat_template(tmp_path) == "four"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"cannot read .*chat_template\.jinja"):
        load_chat_template(tmp_path)
    with pytest.raises(CheckpointError, match="template is broken"):
        processor_with("{% if %}")


def test_date_of_a_template() -> None:
    prompt = processor_with("{{ strftime_now('%Y') }}").encode([{"role": "user", "content": ""}])
    assert decoded(OURS, prompt.ids).startswith(b"20")


def test_tokenizer_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(CheckpointError, match=r"cannot read .*tokenizer\.json"):
        Tokenizer.load(tmp_path)
    raw = json.loads((FOLDER / "tokenizer.json").read_text())
    path.write_text(json.dumps(raw | {"decoder": None}))
    with pytest.raises(CheckpointError, match="byte-level"):
        Tokenizer.load(tmp_path)
    with pytest.raises(PromptError, match=r"no special token <\|nonsense\|>"):
        OURS.tokenizer.special_id("<|nonsense|>")


def test_a_tokenizer_s_training_settings_do_not_touch_prompts(tmp_path: Path) -> None:
    """A fine-tune's tokenizer.json once cut prompts to its 8 tokens without a word."""
    raw = json.loads((FOLDER / "tokenizer.json").read_text())
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 100}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 1012, "pad_type_id": 0, "pad_token": "<|finetune_right_pad|>",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(raw | {"truncation": truncation, "padding": padding})
    )
    text = "one two three four five six seven eight nine ten"
    assert Tokenizer.load(tmp_path).encode(text) == OURS.tokenizer.encode(text)


def test_added_tokens_that_are_not_flagged_special(tmp_path: Path) -> None:
    """They must stay text in a prompt all the same, be found by name, and show in an answer."""
    raw = json.loads((FOLDER / "tokenizer.json").read_text())
    for token in raw["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("<|eot|>") == OURS.tokenizer.encode("<|eot|>")
    assert tokenizer.special_id("<|eot|>") == OURS.tokenizer.special_id("<|eot|>")
    assert tokenizer.token_bytes(tokenizer.special_id("<|eot|>")) == b"<|eot|>"


def test_patch_token_must_be_the_config_s(tmp_path: Path) -> None:
    import dataclasses

    config = dataclasses.replace(load_config(FOLDER), image_token_id=7)
    with pytest.raises(ConfigError, match="do not belong together"):
        Processor.load(FOLDER, config)
