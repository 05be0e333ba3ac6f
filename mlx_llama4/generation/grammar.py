"""Constrain answers to a JSON schema: allow only tokens that can still lead to a valid answer.

llguidance computes those tokens.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from mlx_llama4.errors import InputError, RunError, one_line
from mlx_llama4.files.json_file import parse_json
from mlx_llama4.generation.json_schema.prepare import prepared
from mlx_llama4.prompt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Between JSON's tokens, enough to pretty-print. With more, an answer might never end.
WHITE_SPACE = r"\n {0,16}| "
BITS = 32  # in a word of a mask


def read_schema(path: str | Path, on_note: Callable[[str], None] = lambda note: None) -> Any:
    """Read a JSON schema from a file, or from `path` itself if that is an object in JSON.

    on_note: is told of keywords that are unknown, and the like.

    Raises InputError if it is not JSON, not a schema, or a schema that cannot be enforced.
    """
    is_inline = str(path).lstrip().startswith("{")
    name = "the schema" if is_inline else path
    try:
        schema = parse_json(str(path).encode() if is_inline else Path(path).read_bytes())
    except OSError as failure:
        raise InputError(
            f"cannot read {path}: {failure.strerror or failure}; "
            "give a file that holds a JSON schema"
        ) from None
    except (ValueError, RecursionError) as failure:
        raise InputError(f"{name} is not valid JSON: {failure}") from None
    try:
        schema, notes = prepared(schema)
        _check(_source(schema))
    except InputError as failure:
        raise InputError(f"{name}: {failure}") from None
    for note in notes:
        on_note(f"{name}: {note}")
    return schema


class GrammarTokens:
    """A tokenizer in llguidance's form: the bytes of each token.

    Building it takes about a second for 200,000 tokens; any number of grammars can share it.
    """

    def __init__(self, tokenizer: Tokenizer, end_tokens: Collection[int], vocabulary: int):
        """end_tokens: allowed where an answer may end; no other special token is ever allowed.
        vocabulary: the model's size; tokens beyond the tokenizer's are never allowed either.
        """
        from llguidance import LLTokenizer

        words = _Vocabulary(tokenizer, min(end_tokens), vocabulary)
        self.wrapped: LLTokenizer = LLTokenizer(
            words,  # type: ignore[arg-type]  # its stub names one class; any with its attributes do
            eos_token=sorted(end_tokens),
        )


class _Vocabulary:
    """The attributes that LLTokenizer looks up by name."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, end_token: int, vocabulary: int):
        self.eos_token_id = end_token
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocabulary)]
        self.special_token_ids = [id_ for id_ in tokenizer.special_ids.values() if id_ < vocabulary]
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode())


@dataclass(frozen=True)
class Grammar:
    """Constrains any number of answers to `schema`, which is parsed JSON.

    Raises InputError for a schema that cannot be enforced.
    """

    schema: Any
    tokens: GrammarTokens
    _source: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        source = _source(prepared(self.schema)[0])
        _check(source, self.tokens.wrapped)
        object.__setattr__(self, "_source", source)

    def start(self) -> "GrammarMatcher":
        """Start matching one answer, from its first token."""
        from llguidance import LLMatcher

        tokens = self.tokens.wrapped
        return GrammarMatcher(LLMatcher(tokens, self._source, log_level=0), tokens.vocab_size)


class GrammarMatcher:
    """Follows one answer, token by token: `allowed`, `accept`, `allowed`, …"""

    def __init__(self, matcher: "LLMatcher", vocabulary: int):
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._mask = np.zeros(0, np.uint32)  # one bit a token: the result of the last `allowed`

    def allowed(self) -> mx.array:
        """Which tokens may come next: bool [vocabulary], lazy.

        Raises RunError if the schema turns out to be too complex.
        """
        self._mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        self._check()
        bits = (mx.array(self._mask)[:, None] >> mx.arange(BITS, dtype=mx.uint32)) & 1
        return bits.flatten()[: self._vocabulary].astype(mx.bool_)

    def accept(self, token: int) -> None:
        """Advance past a token. Raises RunError if it was not allowed.

        That happens when every allowed token was forbidden otherwise, for example by a logit bias.
        """
        if not self._mask[token // BITS] >> np.uint32(token % BITS) & 1:
            raise RunError("the logit bias forbids every token that the schema allows here")
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            # Otherwise only an end token would be allowed now, as if the answer were complete.
            raise RunError(f"cannot follow the schema: {_reason(self._matcher.get_error())}")


def _source(schema: Any) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_json_schema(
        json.dumps(schema), overrides={"whitespace_pattern": WHITE_SPACE}
    )


def _check(source: str, tokens: "LLTokenizer | None" = None) -> None:
    from llguidance import LLMatcher

    try:
        failed, messages = LLMatcher.validate_grammar_with_warnings(source, tokens)
    except (ValueError, RecursionError, MemoryError) as failure:
        failed, messages = True, [str(failure)]
    if failed:
        raise InputError(f"answers cannot be held to this schema: {_reason(messages[0])}")


def _reason(text: str) -> str:
    """What llguidance says, in one line, without the option that it advises and we do not have."""
    if "coerce_one_of" in text:
        return (
            "the branches of oneOf may overlap; write anyOf, or give each branch a required "
            "property with a const of its own"
        )
    lines = [line.strip() for line in text.splitlines()]
    said = " ".join(line for line in lines if line.strip("^ "))  # less what only points
    return one_line(said, 300) or "of unknown cause"
