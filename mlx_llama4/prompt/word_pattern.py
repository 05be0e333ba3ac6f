"""Tokenise with a word pattern that nobody knows: in bounded time, and with Ctrl-C heard.

A tokenizer.json says by regular expressions where words end. The release's are fast on any text;
others may take for ever on some. Then the library neither returns nor hears Ctrl-C, or prints a
backtrace of its own and raises what is not even an Exception.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from mlx_llama4.errors import PromptError

# Llama 4's, and GPT-2's as `ByteLevel` has it.
KNOWN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
SECONDS = 20.0  # for a piece of text
PANIC = "PanicException"  # derives from BaseException, and cannot be imported
_STDERR = threading.Lock()


def has_known_patterns(fast: FastTokenizer) -> bool:
    """Are all of a tokenizer's regular expressions among those known to be fast?"""
    parts = (fast.normalizer, fast.pre_tokenizer)
    states = [json.loads(part.__getstate__()) for part in parts if part is not None]
    return all(pattern in KNOWN for pattern in _patterns(states))


def encode_slowly(fast: FastTokenizer, text: str, seconds: float = SECONDS) -> list[int]:
    """As `fast.encode`, in a thread that can be left behind. Raises PromptError if it fails, or
    takes longer than it may.
    """
    return _in_time(lambda: fast.encode_batch([text], add_special_tokens=False)[0].ids, seconds)


def _in_time(work: Callable[[], list[int]], seconds: float) -> list[int]:
    found: list[list[int] | BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as failure:  # a panic among them
            found.append(failure)

    with _no_backtrace():
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(seconds)
    if not found:
        raise PromptError(
            f"the tokenizer takes more than {seconds:g} s for this text: the pattern in its "
            "tokenizer.json is not the release's; use that file"
        )
    if isinstance(found[0], list):
        return found[0]
    if type(found[0]).__name__ == PANIC:
        raise PromptError(
            f"the tokenizer fails on this text ({found[0]}): the pattern in its tokenizer.json is "
            "not the release's; use that file"
        )
    raise found[0]


@contextlib.contextmanager
def _no_backtrace() -> Iterator[None]:
    """Keep the library from printing a backtrace to the process's standard error."""
    with _STDERR:
        sys.stderr.flush()
        try:
            kept = os.dup(2)
        except OSError:  # it is closed
            yield
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def _patterns(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("Regex"), str):
            yield value["Regex"]
        for item in value.values():
            yield from _patterns(item)
    elif isinstance(value, list):
        for item in value:
            yield from _patterns(item)
