"""Read literals as models write them, in Python's or JSON's notation, without evaluating anything.

This is our own reader rather than Python's parser: it compares names exactly as written (Python
normalises look-alikes), bounds depth and sizes, and never warns or overflows.
"""

import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 16
MAX_NUMBER = 40  # characters

NAMED_VALUES = {
    "True": True, "False": False, "None": None, "true": True, "false": False, "null": None,
}  # fmt: skip
NAME = re.compile(r"[^\W\d]\w*+")
_DIGITS = r"[0-9](?:_?[0-9])*+"
NUMBER = re.compile(
    r"[-+]?(?:(?P<base>0(?:[xX](?:_?[0-9a-fA-F])++|[oO](?:_?[0-7])++|[bB](?:_?[01])++))"
    rf"|(?:(?:0(?:_?0)*+|[1-9](?:_?[0-9])*+)(?:\.(?:{_DIGITS})?)?|0[0-9_]*+\.(?:{_DIGITS})?"
    rf"|\.{_DIGITS})(?:[eE][-+]?{_DIGITS})?)(?![\w.])"
)
WHITE_SPACE = re.compile(r"\s*+")
TEXTS = {
    quote: re.compile(f"{quote}((?:[^\\\\]|\\\\.)*?){quote}", re.DOTALL)
    for quote in ('"""', "'''", '"', "'")
}
# Python's prefixes of texts that are no more than texts; rb"", b"" and f"" are something else.
PREFIX = re.compile(r"[rRuU](?=[\"'])")
ESCAPED = re.compile(
    r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|([0-7]{1,3})|(.))", re.DOTALL
)
ESCAPES = {
    "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v",
    "\\": "\\", "'": "'", '"': '"', "/": "/", "\n": "",
}  # fmt: skip


class UnreadableError(Exception):
    """Says in one line what is not accepted, and why."""


class Reader:
    """Reads a text from `position` on. Every method may raise UnreadableError."""

    def __init__(self, text: str, position: int = 0):
        self.text = text
        self.position = position

    def at(self, symbol: str) -> bool:
        """Skip white space; whether `symbol` comes next."""
        if space := WHITE_SPACE.match(self.text, self.position):
            self.position = space.end()
        return self.text.startswith(symbol, self.position)

    def take(self, symbol: str) -> bool:
        """Consume `symbol` if it comes next; returns whether it did."""
        if found := self.at(symbol):
            self.position += len(symbol)
        return found

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Skip white space and consume what the pattern matches, if it does."""
        self.at("")
        if found := pattern.match(self.text, self.position):
            self.position = found.end()
        return found

    def expect(self, symbol: str, after: str) -> None:
        if not self.take(symbol):
            self.refuse(f"{symbol!r} should come after {after}")

    def refuse(self, reason: str) -> NoReturn:
        rest = self.text[self.position : self.position + 20]
        raise UnreadableError(f"{reason}, not {rest!r}" if rest else f"{reason}, but it ends there")

    def value(self, depth: int = 0) -> Any:
        """Read a string, a number, a boolean, None, or a list or dict of these."""
        if depth > MAX_DEPTH:
            raise UnreadableError(f"it is nested more than {MAX_DEPTH} deep")
        if self._at_text():
            return self.joined()
        if self.take("["):
            return self._values("]", depth)
        if self.take("("):
            return self._tuple(depth)
        if self.at("{"):
            return self.mapping(depth)
        if number := self.match(NUMBER):
            return _number(number)
        start = self.position
        if not (name := self.match(NAME)) or name[0] not in NAMED_VALUES:
            self.position = start
            self.refuse("an argument must be a text, a number, True, False, None, a list or a dict")
        return NAMED_VALUES[name[0]]

    def mapping(self, depth: int = 0) -> dict[str, Any]:
        """Read {"key": value, …}; each key may come only once."""
        self.expect("{", "this")
        mapping: dict[str, Any] = {}
        while not self.take("}"):
            if not self._at_text():
                self.refuse("a dict's key must be a text")
            key = self.joined()
            self.expect(":", "a dict's key")
            if key in mapping:
                raise UnreadableError(f"the key {key[:40]!r} is given twice")
            mapping[key] = self.value(depth + 1)
            if not self.take(",") and not self.at("}"):
                self.refuse("',' or '}' should come after a dict's value")
        return mapping

    def _at_text(self) -> bool:
        return self.at('"') or self.at("'") or PREFIX.match(self.text, self.position) is not None

    def joined(self) -> str:
        """Read a text, or several side by side, which Python joins."""
        texts = [self.quoted()]
        while self._at_text():
            texts.append(self.quoted())
        return "".join(texts)

    def quoted(self) -> str:
        prefix = self.match(PREFIX)
        quote = next(quote for quote in TEXTS if self.at(quote))
        if not (text := self.match(TEXTS[quote])):
            raise UnreadableError("a text has no end")
        if prefix is not None and prefix[0] in "rR":
            return text[1]  # a backslash is a backslash
        unescaped = ESCAPED.sub(_unescape, text[1])
        if not any("\ud800" <= character <= "\udfff" for character in unescaped):
            return unescaped
        try:  # JSON writes characters of the upper planes as two surrogates
            return unescaped.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise UnreadableError("a text holds half a character") from None

    def _values(self, end: str, depth: int) -> list[Any]:
        values = []
        while not self.take(end):
            values.append(self.value(depth + 1))
            if not self.take(",") and not self.at(end):
                self.refuse(f"',' or {end!r} should come after a value")
        return values

    def _tuple(self, depth: int) -> Any:
        """Read a tuple as a list; a single value in parentheses is that value."""
        start = self.position
        values = self._values(")", depth)
        bare = len(values) == 1 and not self.text[start : self.position - 1].rstrip().endswith(",")
        return values[0] if bare else values


def _number(found: re.Match[str]) -> int | float:
    digits = found[0]
    if len(digits) > MAX_NUMBER:
        raise UnreadableError(
            f"a number has {len(digits):,} characters; at most {MAX_NUMBER} are taken"
        )
    if found["base"]:
        return int(digits, 0)
    if not set(digits) & set(".eE"):
        return int(digits)
    if not math.isfinite(number := float(digits)):
        raise UnreadableError(f"{digits} is too large a number")
    return number


def _unescape(escaped: re.Match[str]) -> str:
    if code := escaped[1] or escaped[2] or escaped[3]:
        if int(code, 16) > 0x10FFFF:
            raise UnreadableError(f"{escaped[0]} is not a character")
        return chr(int(code, 16))
    if escaped[4]:
        return chr(int(escaped[4], 8))
    if escaped[5] in "uUxN":
        raise UnreadableError(f"\\{escaped[5]} in a text is not a character")
    return ESCAPES.get(escaped[5], escaped[0])  # as in Python, other escapes stay as written
