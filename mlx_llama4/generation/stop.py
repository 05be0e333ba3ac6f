"""Show text up to a stop string, and never any part of that string."""

from collections.abc import Sequence

from mlx_llama4.errors import InputError


class StopStrings:
    """Holds back text that may begin a stop string until that is known.

    The stop string that is completed first counts; if several end together, the longest. So the
    text shown does not depend on how it is cut into tokens.
    """

    def __init__(self, strings: Sequence[str]):
        """Raises InputError for an empty stop string."""
        if not all(strings):
            raise InputError("a stop string is empty, which would stop every answer; leave it out")
        self._strings = tuple(strings)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """Add `text`; return what can be shown now. Returns "" once a stop string was found."""
        if not self._strings or self.found:
            return "" if self.found else text
        text = self._held + text
        matches = [
            (begin + len(string), begin)
            for string in self._strings
            if (begin := text.find(string)) >= 0
        ]
        if matches:
            self.found, self._held = True, ""
            return text[: min(matches)[1]]
        shown = len(text) - max(_overlap(text, string) for string in self._strings)
        self._held = text[shown:]
        return text[:shown]

    def rest(self) -> str:
        """At the end of an answer, return the text held back: it began no stop string after all."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, string: str) -> int:
    """How many characters at the end of `text` could begin `string`."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
