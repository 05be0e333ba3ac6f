"""Tokenizers whose patterns are costly, and damaged tokenizer files: one line each."""

import json
import random
import threading
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer

from mlx_llama4.demo.questions import CHECKPOINT
from mlx_llama4.errors import CheckpointError, InputError, PromptError
from mlx_llama4.prompt import word_pattern
from mlx_llama4.prompt.tokenizer import Tokenizer

RAW = json.loads((CHECKPOINT / "tokenizer.json").read_text())


def with_pattern(pattern: str) -> Tokenizer:
    raw = json.loads(json.dumps(RAW))
    raw["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}
    return Tokenizer(FastTokenizer.from_str(json.dumps(raw)))


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(\w+\s?)+\d", r"(a+a+)+c"])
def test_a_pattern_that_takes_for_ever(pattern: str, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = with_pattern(pattern)
    with pytest.raises(PromptError, match=r"tokenizer fails on this text .*use that file"):
        tokenizer.encode("a" * 60 + "!")
    assert capfd.readouterr().err == ""


def test_a_slow_one_is_left_behind() -> None:
    gate = threading.Event()
    try:
        with pytest.raises(PromptError, match=r"takes more than 0\.01 s for this text"):
            word_pattern._in_time(lambda: [int(gate.wait())], 0.01)
    finally:
        gate.set()


def test_the_library_lets_others_run_meanwhile() -> None:
    """Or Ctrl-C would not be heard: a thread that waits for it goes on."""
    tokenizer, heard = with_pattern(r"(a+)+b"), threading.Event()
    threading.Thread(target=heard.set).start()
    with pytest.raises(PromptError):
        tokenizer.encode("a" * 60)
    assert heard.wait(60)


@pytest.mark.parametrize("pattern", [r"\w+|\W+", r"[a-z]+|.", r"\s+|\S+"])
def test_other_patterns_work(pattern: str) -> None:
    tokenizer = with_pattern(pattern)
    text = "Some words, 日本 and 12 numbers.\n" * 50
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_releases_pattern_is_known() -> None:
    assert word_pattern.has_known_patterns(FastTokenizer.from_str(json.dumps(RAW)))
    assert not with_pattern("a")._is_known


def fuzz(count: int, seed: int, folder: Path) -> None:
    chance, text = random.Random(seed), (CHECKPOINT / "tokenizer.json").read_bytes()
    question = "What is 7 plus 5? " + "a" * 50
    expected = Tokenizer.load(CHECKPOINT).encode(question)
    for _ in range(count):
        data = bytearray(text)
        start = chance.choice([0, len(data) - 3000]) + chance.randrange(3000)
        kind = chance.randrange(4)
        if kind == 0:
            data[start] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del data[start : start + chance.randint(1, 200)]
        elif kind == 2:
            data[start:start] = chance.choice([b"null", b"[", b"}", b'"', b"\x1b", b"-1", b"9e999"])
        else:
            del data[start:]
        (folder / "tokenizer.json").write_bytes(data)
        try:
            ids = Tokenizer.load(folder).encode(question)
        except InputError as refusal:
            assert str(refusal).isprintable() and len(str(refusal)) <= 2000
        else:
            assert ids and (len(ids) <= 2 * len(expected) or len(ids) <= len(question))


def test_mutated_tokenizers(tmp_path: Path) -> None:
    fuzz(40, 0, tmp_path)


@pytest.mark.slow
def test_many_mutated_tokenizers(tmp_path: Path) -> None:
    fuzz(800, 1, tmp_path)


def test_a_pattern_that_is_none(tmp_path: Path) -> None:
    raw = json.loads(json.dumps(RAW))
    raw["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": "(((a"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="cannot read"):
        Tokenizer.load(tmp_path)
