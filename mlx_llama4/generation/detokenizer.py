"""Tokens → text, one token at a time, never showing half a character."""

import codecs
from collections.abc import Callable


class StreamingDetokenizer:
    """Turns byte-level tokens into text.

    A token may end inside a character; its bytes are held back until the rest arrives. Bytes that
    are not UTF-8 become U+FFFD.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]):
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """Return the text that this token completes; often "" for emoji and rare scripts."""
        return self._decoder.decode(self._token_bytes(token))
