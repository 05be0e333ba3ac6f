"""Text as it comes, up to a stop string and never any of it."""

from collections.abc import Sequence

from mlx_llama4.errors import InputError


class StopStrings:
    """Holds back what may be the beginning of a stop string until it is known.

    Of several stop strings the one that is complete first counts, of those that end together the
    longest: so what is shown does not depend on how the text is cut into tokens.
    """

    def __init__(self, strings: Sequence[str]):
        """Raises InputError for an empty one."""
        if not all(strings):
            raise InputError("a stop string is empty, which would stop every answer; leave it out")
        self._strings = tuple(strings)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What can be shown of the text now that `text` has come; once one is found, no more."""
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
        """What was held back, at the end of an answer: it began no stop string after all."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, string: str) -> int:
    """How many characters at the end of `text` could begin `string`."""
    longest = min(len(text), len(string) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(string[:n])), 0)
