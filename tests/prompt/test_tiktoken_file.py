"""tokenizer.model → the ids that tiktoken gives, by an implementation of its rule in this file."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from mlx_llama4.errors import CheckpointError
from mlx_llama4.prompt.tiktoken_file import (
    load_fast_tokenizer,
    read_ranks,
    special_tokens,
    tokenizer_files,
)
from mlx_llama4.prompt.tokenizer import Tokenizer
from tests.prompt.ranks import RANKS, write

# The pattern for the ASCII letters, digits and signs that the texts below are made of.
ASCII_PATTERN = re.compile(
    r"[^\r\na-zA-Z0-9]?[A-Z]*[a-zé]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\na-zA-Z0-9]?[A-Z]+[a-zé]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[0-9]{1,3}| ?[^\sa-zA-Z0-9é]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tiktoken") / "tokenizer.model", RANKS)


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.load(model.parent)


def reference_ids(text: str) -> list[int]:
    """Join the neighbours whose union has the lowest rank, the first such, while there are any."""
    ids = []
    for word in ASCII_PATTERN.findall(text):
        whole = word.encode()
        parts = [whole] if whole in RANKS else [bytes([byte]) for byte in whole]
        while True:
            unions = [RANKS.get(one + two, 10**9) for one, two in pairwise(parts)]
            if min(unions, default=10**9) == 10**9:
                break
            at = unions.index(min(unions))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [RANKS[part] for part in parts]
    return ids


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet="abcdhetHES 's123\n\r./é", max_size=40))
@example("the abcd  bcd's 12345\n\n\n // He said: the theHe")
@example("<|eot|> is text")
@example("ace bcd'S d'E")
def test_ids_of_tiktoken(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == reference_ids(text)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text


@given(st.text())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
    assert all(token < len(RANKS) for token in ids)


def test_special_tokens_of_the_releases() -> None:
    """Ids less 200,000, as the comments of llama-models have them."""
    names = special_tokens()
    assert len(set(names)) == len(names) == 2048
    expected = {
        "<|begin_of_text|>": 0,
        "<|end_of_text|>": 1,
        "<|header_start|>": 5,
        "<|header_end|>": 6,
        "<|eom|>": 7,
        "<|eot|>": 8,
        "<|python_start|>": 16,
        "<|finetune_right_pad|>": 18,
        "<|text_post_train_reserved_special_token_8|>": 19,
        "<|text_post_train_reserved_special_token_68|>": 79,
        "<|image_start|>": 80,
        "<|image_end|>": 81,
        "<|tile_x_separator|>": 84,
        "<|tile_y_separator|>": 85,
        "<|image|>": 90,
        "<|patch|>": 92,
        "<|vision_reserved_special_token_1047|>": 1133,
        "<|reasoning_reserved_special_token_0|>": 1134,
        "<|reasoning_thinking_end|>": 1143,
        "<|reserved_special_token_0|>": 1144,
        "<|reserved_special_token_903|>": 2047,
    }
    assert {name: names.index(name) for name in expected} == expected


def test_special_tokens_follow_the_byte_strings(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == len(RANKS) + 2048
    for index in (0, 92, 2047):
        assert tokenizer.special_id(special_tokens()[index]) == len(RANKS) + index


def test_files_for_others_say_the_same(model: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name, content in tokenizer_files(model).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    text = "the abcd, He's 12345\n\n<|eot|> é 中"
    again = Tokenizer.load(tmp_path)
    assert again.encode(text) == tokenizer.encode(text)
    assert again.special_ids == tokenizer.special_ids
    fast = FastTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert fast.encode("the<|eot|>").ids == [len(RANKS), RANKS[b"the"], len(RANKS) + 8]
    assert fast.decode(fast.encode(" the é中").ids) == " the é中"
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert {config[f"{kind}_token"] for kind in ("bos", "eos", "pad")} <= set(special_tokens())


def test_transformers_reads_the_files(model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name, content in tokenizer_files(model).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("the")[0] == theirs.bos_token_id == len(RANKS)
    assert theirs.eos_token_id == len(RANKS) + 8
    ids = theirs.apply_chat_template([{"role": "user", "content": "the"}], return_dict=False)
    assert ids.count(theirs.eos_token_id) == ids.count(theirs.bos_token_id) == 1
    assert RANKS[b"the"] in ids


def test_tokenizer_json_is_preferred(model: Path, tmp_path: Path) -> None:
    """It may have been changed, and takes less time."""
    (tmp_path / "tokenizer.model").write_bytes(b"damaged")
    (tmp_path / "tokenizer.json").write_text(tokenizer_files(model)["tokenizer.json"])
    Tokenizer.load(tmp_path)


DAMAGED = {
    "not base64": b"!!! 0\n",
    "no rank": b"wA==\n",
    "three words": b"wA== 0 0\n",
    "rank of letters": b"wA== zero\n",
    "rank left out": b"wA== 1\n",
    "twice": b"wA== 0\nwA== 1\n",
    "no byte": b"= 0\n",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_lines(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    line = content.count(b"\n")
    with pytest.raises(CheckpointError, match=f"line {line} is not the next byte string"):
        Tokenizer.load(tmp_path)


def test_cut_files(tmp_path: Path) -> None:
    for count in (0, 100):
        path = write(tmp_path / "tokenizer.model", dict(list(RANKS.items())[:count]))
        with pytest.raises(CheckpointError, match=f"lacks {256 - count} of the 256 bytes"):
            read_ranks(path)


def test_absent_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(CheckpointError, match="cannot read"):
        load_fast_tokenizer(tmp_path / "tokenizer.model")
