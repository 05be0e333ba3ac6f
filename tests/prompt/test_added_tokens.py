"""Tokens that a fine-tune added: words are found in text as the reference finds them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedTokenizerFast

from mlx_llama4.demo.questions import CHECKPOINT
from mlx_llama4.prompt.tokenizer import Tokenizer

WORDS = ("<think>", "</think>", "Straßenbahn", "two words", "🦙🦙")
TEXTS = (
    "<think>x</think> hi",
    "Die Straßenbahn und die Straßenbahnen.",
    "two words, two  words",
    "a🦙🦙🦙b",
    "<think",
    "</think></think>",
    "ab two words cd\nef <think>",
)


def with_added(folder: Path, **flags: Any) -> Path:
    raw = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    model = raw["added_tokens"][0]
    start = max(token["id"] for token in raw["added_tokens"]) + 1
    raw["added_tokens"] += [
        model
        | {"id": start + index, "content": word, "special": False, "normalized": False}
        | flags
        for index, word in enumerate(WORDS)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("flags", [{}, {"single_word": True}, {"lstrip": True}, {"rstrip": True}])
def test_words_are_found_as_the_reference_finds_them(
    tmp_path: Path, text: str, flags: dict[str, bool]
) -> None:
    folder = with_added(tmp_path, **flags)
    reference = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    expected = reference.encode(text, add_special_tokens=False)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode(text) == expected
    if not flags:  # the text comes back, words and all
        assert tokenizer.decode(expected) == text


@pytest.mark.parametrize("flags", [{}, {"single_word": True}])
def test_long_texts_are_cut_between_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool]
) -> None:
    monkeypatch.setattr("mlx_llama4.prompt.tokenizer.PIECE", 8)
    folder = with_added(tmp_path, **flags)
    text = "so two words are two words and <think> again two words\nhere " * 5
    whole = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    assert Tokenizer.load(folder).encode(text) == whole.encode(text, add_special_tokens=False).ids


def test_special_tokens_stay_text(tmp_path: Path) -> None:
    """Also those that the file forgot to flag."""
    raw = json.loads((CHECKPOINT / "tokenizer.json").read_text())
    for token in raw["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    plain, unflagged = (Tokenizer.load(folder) for folder in (CHECKPOINT, tmp_path))
    assert unflagged.special_ids == plain.special_ids
    text = "Say <|eot|> and <|header_start|>."
    assert unflagged.encode(text) == plain.encode(text)
    assert not set(plain.encode(text)) & set(plain.special_ids.values())
    special = Tokenizer.load(with_added(tmp_path, special=True))
    assert special.special_id("<think>") not in special.encode("<think>")
