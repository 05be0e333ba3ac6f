"""Text ↔ token ids, with the checkpoint's tokenizer.json, or tokenizer.model if it has none.

Llama 4's tokenizer is byte-level BPE with some 1,100 special tokens. Text never becomes a special
token here; callers that want one look it up by name. A fine-tune may have added tokens that are
words, not special: these are found in text, as in the reference.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.decoders import ByteLevel

from mlx_llama4.errors import CheckpointError, PromptError
from mlx_llama4.files.foreign import stand_in
from mlx_llama4.prompt.byte_symbols import BYTE_OF_SYMBOL
from mlx_llama4.prompt.tiktoken_file import FILE_NAME, load_fast_tokenizer
from mlx_llama4.prompt.word_pattern import PANIC, encode_slowly, has_known_patterns

# Characters to tokenise at once: each takes 200 bytes of memory, and a call cannot be interrupted.
PIECE = 2**20
# The family's control tokens are special, whatever the file says of them.
CONTROL = re.compile(r"<\|.*\|>")
# Where Llama's and GPT-2's patterns always end a word, whatever is around it.
WORD_ENDS = re.compile(r"(?<=[a-z])(?= [a-z])|(?<=\S\n)(?=[^\W\d_])")


class Tokenizer:
    def __init__(self, fast: FastTokenizer, file: bytes = b""):
        """file: what it was read from, for `digest`."""
        if not isinstance(fast.decoder, ByteLevel):
            raise CheckpointError("tokenizer.json is not a byte-level tokenizer like Llama 4's")
        # Some files still have settings from their training; a prompt is never cut or padded.
        fast.no_truncation()
        fast.no_padding()
        added = fast.get_added_tokens_decoder()
        self.special_ids: dict[str, int] = {
            token.content: id_
            for id_, token in added.items()
            if token.special or CONTROL.fullmatch(token.content)
        }
        # Flags those that a file forgot to flag, so that the next line covers them all.
        fast.add_special_tokens(
            [AddedToken(name, special=True, normalized=False) for name in self.special_ids]
        )
        fast.encode_special_tokens = True  # "<|eot|>" in text is text
        self._fast = fast
        self._hash = hashlib.sha256(file)
        self._is_known = has_known_patterns(fast)
        words = [token for token in added.values() if token.content not in self.special_ids]
        self._has_words = (
            self._is_known
            # A token that was added as a word might be cut in two, or look at its neighbours.
            and not any(token.single_word or WORD_ENDS.search(token.content) for token in words)
            and _splits(fast, "ab cd\nef")
            == [part for piece in ("ab", " cd\n", "ef") for part in _splits(fast, piece)]
        )
        # The text of an added token: nothing if it is special, else its name.
        self._added = {
            id_: b"" if token.special else token.content.encode() for id_, token in added.items()
        }

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Load a folder's tokenizer. Raises CheckpointError if it is missing or damaged."""
        path = folder / "tokenizer.json"
        if not path.is_file() and (folder / FILE_NAME).is_file():
            path = folder / FILE_NAME
            return cls(load_fast_tokenizer(path), path.read_bytes())
        if not path.is_file():
            raise CheckpointError(f"{folder} has no tokenizer.json; download it too")
        try:
            file = path.read_bytes()
            if (problem := stand_in(path, file)) is not None:
                raise CheckpointError(problem)
            return cls(FastTokenizer.from_str(file.decode()), file)
        except CheckpointError:
            raise
        except BaseException as failure:  # tokenizers raises nothing narrower, and may panic
            if not isinstance(failure, Exception) and type(failure).__name__ != PANIC:
                raise
            raise CheckpointError(f"cannot read {path}: {failure}") from None

    def digest(self, template: str) -> str:
        """Hexadecimal, of the tokenizer's file and a chat template: what ids depend on."""
        digest = self._hash.copy()
        digest.update(template.encode())
        return digest.hexdigest()

    @property
    def vocab_size(self) -> int:
        return self._fast.get_vocab_size(with_added_tokens=True)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token, in the symbols of tokenizer.json → id."""
        return self._fast.get_vocab(with_added_tokens=True)

    def special_id(self, name: str) -> int:
        if name not in self.special_ids:
            raise PromptError(f"the tokenizer has no special token {name}")
        return self.special_ids[name]

    def encode(self, text: str) -> list[int]:
        """Tokenise plain text; names of special tokens in it stay text."""
        try:
            return [token for piece in self._pieces(text) for token in self._ids(piece)]
        except TypeError:
            raise PromptError("the text is not Unicode: it holds a lone surrogate") from None

    def _ids(self, piece: str) -> list[int]:
        if not self._is_known:
            return encode_slowly(self._fast, piece)
        return self._fast.encode(piece, add_special_tokens=False).ids

    def _pieces(self, text: str) -> Iterator[str]:
        """Split a text into pieces whose tokens, joined, equal the tokens of the whole text."""
        start = 0
        while self._has_words and len(text) - start > PIECE:
            if (end := WORD_ENDS.search(text, start + PIECE)) is None:
                break
            yield text[start : end.start()]
            start = end.start()
        yield text[start:]

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of a token, perhaps only part of a character; b"" if it is special."""
        if token in self._added:
            return self._added[token]
        symbols = self._fast.id_to_token(token)
        # None for ids past the tokenizer's: models pad their vocabulary.
        return b"" if symbols is None else bytes(BYTE_OF_SYMBOL[symbol] for symbol in symbols)

    def decode(self, ids: Iterable[int], shown: Collection[str] = ()) -> str:
        """The text of ids; special tokens are omitted unless named in `shown`."""
        names = {self.special_ids[name]: name for name in shown if name in self.special_ids}
        text = b"".join(
            names[token].encode() if token in names else self.token_bytes(token) for token in ids
        )
        return text.decode("utf-8", "replace")


def _splits(fast: FastTokenizer, text: str) -> list[str]:
    """Split a text as the tokenizer does before it looks for tokens."""
    if fast.pre_tokenizer is None:
        return [text]
    return [part for part, _ in fast.pre_tokenizer.pre_tokenize_str(text)]


def check_same_vocabulary(a: Path, b: Path) -> None:
    """Raise CheckpointError unless the tokenizers of two folders give each token the same id."""
    first, second = (Tokenizer.load(folder).vocabulary for folder in (a, b))
    for token in sorted(first.keys() | second.keys()):
        ids = [vocabulary.get(token, "absent") for vocabulary in (first, second)]
        if ids[0] != ids[1]:
            raise CheckpointError(
                f"{a} and {b} cannot be compared: their tokenizers differ, token {token!r} is "
                f"{ids[0]} in the one and {ids[1]} in the other"
            )
