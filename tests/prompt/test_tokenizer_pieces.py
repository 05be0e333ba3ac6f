"""Long texts are tokenised in pieces, to the same tokens."""

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from mlx_llama4.demo.questions import CHECKPOINT, NOTES
from mlx_llama4.prompt import tokenizer as module
from mlx_llama4.prompt.tokenizer import Tokenizer

ALPHABET = ["a", "b", " ", "  ", "\n", "\r\n", "\t", "s", "'s", "'", "A", "7", ".", "é", "她", "🦙"]
ALPHABET += ["\u0301", "_", "\x1f", "\u00a0", "\u2028", "a b", ".\nab"]


def texts(count: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(ALPHABET, k=draw.randint(0, 60))) for _ in range(count)]


def trained(pre_tokenizer: pre_tokenizers.PreTokenizer) -> FastTokenizer:
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer, fast.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator([NOTES, *texts(300)], trainer)
    return fast


@pytest.mark.parametrize(
    ("name", "has_words"), [("llama", True), ("gpt2", True), ("one", False), ("prefix", False)]
)
def test_the_same_tokens(name: str, has_words: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        "llama": lambda: Tokenizer.load(Path(CHECKPOINT)),
        "gpt2": lambda: Tokenizer(trained(pre_tokenizers.ByteLevel(add_prefix_space=False))),
        "one": lambda: Tokenizer(
            trained(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        ),
        "prefix": lambda: Tokenizer(trained(pre_tokenizers.ByteLevel(add_prefix_space=True))),
    }
    tokenizer = made[name]()
    samples = [NOTES, *texts(2000)]
    whole = [tokenizer.encode(text) for text in samples]
    monkeypatch.setattr(module, "PIECE", 3)
    pieces = [list(tokenizer._pieces(text)) for text in samples]
    assert [tokenizer.encode(text) for text in samples] == whole
    assert ["".join(parts) for parts in pieces] == samples
    assert (max(map(len, pieces)) > 10) == has_words
