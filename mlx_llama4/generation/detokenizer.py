"""Tokens → text as they come, without ever showing half a character."""

import codecs
from collections.abc import Callable


class StreamingDetokenizer:
    """A token of a byte-level tokenizer may end inside a character; its bytes wait here for
    the rest. Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]):
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that is complete with this token; often "" for emoji and rare scripts."""
        return self._decoder.decode(self._token_bytes(token))
