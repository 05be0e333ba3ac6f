"""A tokenizer for random models: any vocabulary, special tokens at its end as in the releases."""

import base64
import itertools
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlx_llama4.checkpoint.meta.params import GENERATION_CONFIG, PATCH
from mlx_llama4.prompt.tiktoken_file import NUM_SPECIAL_TOKENS, tokenizer_files

RELEASED_VOCABULARY = 202_048
LEAST_VOCABULARY = NUM_SPECIAL_TOKENS + 256


def random_tokenizer_files(vocabulary: int) -> dict[str, str]:
    """Name → contents of the files for this many tokens; the last 2,048 are special.

    Text is split into syllables of up to four letters, about as many as real tokenizers make.
    """
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-benchmark-") as folder:
        path = Path(folder) / "tokenizer.model"
        texts = itertools.islice(_texts(), vocabulary - NUM_SPECIAL_TOKENS)
        lines = [base64.b64encode(text) + f" {rank}\n".encode() for rank, text in enumerate(texts)]
        path.write_bytes(b"".join(lines))
        return tokenizer_files(path)


def generation_config(vocabulary: int) -> dict[str, object]:
    """The releases' generation_config.json, with ids moved as their special tokens are."""
    moved: dict[str, object] = {}
    for key, value in GENERATION_CONFIG.items():
        if key == "eos_token_id":
            moved[key] = [moved_id(token, vocabulary) for token in value]
        else:
            moved[key] = moved_id(value, vocabulary) if key.endswith("token_id") else value
    return moved


def patch_id(vocabulary: int) -> int:
    """The id of <|patch|>."""
    return moved_id(PATCH, vocabulary)


def moved_id(special: int, vocabulary: int) -> int:
    """Where a special token of the releases lies in a vocabulary of another size."""
    return special - RELEASED_VOCABULARY + vocabulary


def _texts() -> Iterator[bytes]:
    """All bytes, then strings of letters, short ones first, with and without a leading space."""
    yield from (bytes([byte]) for byte in range(256))
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            word = "".join(letters).encode()
            if length > 1:
                yield word
            yield b" " + word
