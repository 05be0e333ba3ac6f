"""The user is shown each call of a tool, and asked; nothing is run without a yes."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mlx_llama4.cli.console.terminal import CONTROLS
from mlx_llama4.prompt.replies import ToolCall

QUESTION = "Run it? y/N/always "
DECLINED = "The user declined this call; it was not run."
SHOWN_CHARACTERS = 1000  # of a result; the model gets all of it
# Fillers and variation selectors: Unicode has them printable, and nothing is seen of them.
UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


class Tools(Protocol):
    """What of a ToolFile is needed."""

    def check(self, call: ToolCall) -> str | None: ...

    def run(self, call: ToolCall, timeout_seconds: float) -> str: ...


class Consent:
    """ask: puts a question to the user and returns what was typed; EOFError is a no, Ctrl-C is
    passed on. say: shows a line or several. timeout: seconds that a call may take.
    """

    def __init__(
        self,
        tools: Tools,
        ask: Callable[[str], str],
        say: Callable[[str], None],
        timeout: float = 30.0,
    ):
        self._tools = tools
        self._ask = ask
        self._say = say
        self._timeout = timeout
        self._always: set[str] = set()  # names of functions, for as long as this lives

    def answer(self, calls: Sequence[ToolCall]) -> list[str]:
        """What to tell the model for each call, in their order; each is run before the next is
        shown.
        """
        return [self._answer(call) for call in calls]

    def _answer(self, call: ToolCall) -> str:
        self._say(shown_call(call))
        result = self._tools.check(call)
        if result is None:
            if not self._agreed(call.name):
                return DECLINED
            result = self._tools.run(call, self._timeout)
        self._say(shown_result(result))
        return result

    def _agreed(self, name: str) -> bool:
        if name in self._always:
            return True
        try:
            typed = self._ask(QUESTION).strip().lower()
        except EOFError:
            return False
        if typed == "always":
            self._always.add(name)
        return typed in ("y", "yes", "always")


def shown_call(call: ToolCall) -> str:
    """All of a call, on one line: get_weather(city="Oslo"). What a screen would not show as it is
    (control characters, spaces of no width, changes of direction) is escaped.
    """
    arguments = (f"{name}={_shown_value(value)}" for name, value in call.arguments.items())
    return _escaped(f"{call.name}({', '.join(arguments)})")


def shown_result(text: str) -> str:
    """The beginning of what the model is told, safe for a terminal."""
    cut = "" if len(text) <= SHOWN_CHARACTERS else f"\n[… {len(text):,} characters in all]"
    lines = (text[:SHOWN_CHARACTERS].translate(CONTROLS) + cut).split("\n")
    return "\n".join("→ " + line if not index else "  " + line for index, line in enumerate(lines))


def _shown_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_shown_value, value))}]"
    if isinstance(value, dict):
        inner = (f"{_shown_value(key)}: {_shown_value(item)}" for key, item in value.items())
        return "{" + ", ".join(inner) + "}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _escaped(text: str) -> str:
    return "".join(
        character
        if character.isprintable() and not UNSEEN.match(character)
        else character.encode("unicode_escape").decode()
        for character in text
    )
