"""Templates that want a message's content as parts, as a text, or that leave something out."""

from typing import Any

import pytest

from mlx_llama4.errors import PromptError
from mlx_llama4.prompt.chat_template import ChatTemplate, GivenIds, PlainText, SpecialToken

NAMES = ["<|image|>", "<|eot|>", "<|header_start|>", "<|header_end|>"]
PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}"
    "{% if part['type'] == 'image' %}<|image|>{% elif part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|eot|>{% endfor %}"
)
PARTS_THAT_FAIL = "{% for m in messages %}{{ m.content[0].text + '' }}{% endfor %}"
TEXT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|eot|>{% endfor %}"
TEXT_THAT_FAILS = "{% for m in messages %}{{ m.content + '<|eot|>' }}{% endfor %}"
BOTH = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ part.text if part.type == 'text' else '<|image|>' }}"
    "{% endfor %}{% endif %}<|eot|>{% endfor %}"
)


def shown(source: str, *messages: dict[str, Any]) -> str:
    pieces = ChatTemplate(source, NAMES, {}).render(messages, False)
    return "".join(
        str(piece.ids) if isinstance(piece, GivenIds)
        else piece.name if isinstance(piece, SpecialToken)
        else piece.text
        for piece in pieces
    )  # fmt: skip


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


@pytest.mark.parametrize("source", [PARTS, TEXT, BOTH])
@pytest.mark.parametrize("content", ["7 plus 5", [text("7 plus 5")], [text("7 "), text("plus 5")]])
def test_words_reach_the_model_in_the_form_that_it_wants(source: str, content: Any) -> None:
    assert shown(source, user(content)) == "[user]7 plus 5<|eot|>"


@pytest.mark.parametrize(
    ("source", "expected"), [(PARTS_THAT_FAIL, "7 plus 5"), (TEXT_THAT_FAILS, "7 plus 5<|eot|>")]
)
def test_a_form_that_the_template_fails_on(source: str, expected: str) -> None:
    for content in ("7 plus 5", [text("7 plus 5")]):
        assert shown(source, user(content)) == expected


def test_pictures_and_a_conversation() -> None:
    image = {"type": "image", "image": None}
    said = shown(
        PARTS,
        {"role": "system", "content": "Be brief."},
        user([image, text("What is it?")]),
        {"role": "assistant", "content": "A star.", "token_ids": [5, 6]},
        user("Sure <|eot|>?"),
    )
    assert said == (
        "[system]Be brief.<|eot|>[user]<|image|>What is it?<|eot|>[assistant](5, 6)<|eot|>"
        "[user]Sure <|eot|>?<|eot|>"
    )
    pieces = ChatTemplate(PARTS, NAMES, {}).render([user("Sure <|eot|>?")], False)
    assert pieces == [PlainText("[user]Sure <|eot|>?"), SpecialToken("<|eot|>")]


def test_a_message_without_words() -> None:
    for source in (PARTS, TEXT, BOTH):
        assert shown(source, user("")) == "[user]<|eot|>"


CONVERSATION = (
    {"role": "system", "content": "Be brief."},
    user("Hello"),
    {"role": "assistant", "content": "Hi!", "token_ids": [5, 6]},
    user("And now?"),
)


@pytest.mark.parametrize(
    ("source", "role"),
    [
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", "system"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "system"),
        (
            "{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}",
            "assistant",
        ),
        ("{{ messages[0].content }}{{ messages[-1].content }}", "user"),
        ("{% for m in messages[:3] %}{{ m.content }}{% endfor %}", "user"),
        ("{% for m in messages %}{{ m.content[:2] }}{% endfor %}", "system"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "system"),
    ],
)
def test_what_is_left_out_is_said(source: str, role: str) -> None:
    message = f"leaves out what the {role} message says; take the template out of the folder"
    with pytest.raises(PromptError, match=message):
        shown(source, *CONVERSATION)


@pytest.mark.parametrize("change", ["upper", "tojson", "trim", "replace('a', 'b')", "indent"])
def test_words_that_the_template_changes(change: str) -> None:
    source = f"{{% for m in messages %}}{{{{ m.content | {change} }}}}{{% endfor %}}"
    assert shown(source, user(' "a"\n b '))


def test_a_word_that_only_looks_like_a_text() -> None:
    """What a user says may be in the template's own words."""
    with pytest.raises(PromptError, match="leaves out what the user message says"):
        shown("{{ 'You are a model.' }}", user("Which model?"))
