"""Show each tool call to the user and ask; nothing runs without a yes."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mlx_llama4.cli.console.terminal import CONTROLS
from mlx_llama4.prompt.replies import ToolCall

QUESTION = "Run it? y/N/always "
DECLINED = "The user declined this call; it was not run."
SHOWN_CHARACTERS = 1000  # of a result; the model gets all of it
# Fillers and variation selectors, which Unicode calls printable but which are invisible.
UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


class Tools(Protocol):
    """The part of a ToolFile that consent needs."""

    def prepared(self, call: ToolCall) -> ToolCall: ...

    def check(self, call: ToolCall) -> str | None: ...

    def run(self, call: ToolCall, timeout_seconds: float) -> str: ...


class Consent:
    """Runs tool calls that the user agrees to.

    ask: puts a question to the user and returns what was typed; EOFError counts as a no, Ctrl-C is
        passed on.
    say: shows one or more lines.
    timeout: how many seconds a call may take.
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
        """Return what to tell the model about each call, in order. Each call is run before the
        next one is shown.
        """
        return [self._answer(call) for call in calls]

    def _answer(self, call: ToolCall) -> str:
        call = self._tools.prepared(call)  # what is shown is what will run
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
    """Write out a whole call on one line: get_weather(city="Oslo"). Characters that a screen would
    not show (control characters, zero-width spaces, changes of direction) are escaped.
    """
    arguments = (f"{name}={_shown_value(value)}" for name, value in call.arguments.items())
    return _escaped(f"{call.name}({', '.join(arguments)})")


def shown_result(text: str) -> str:
    """The beginning of a result, safe for a terminal."""
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
