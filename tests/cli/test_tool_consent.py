"""Nothing is run without a yes; what is shown is what would be run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_llama4.cli.talk.tool_consent import DECLINED, QUESTION, Consent, shown_call, shown_result
from mlx_llama4.prompt.replies import ToolCall, parse_reply
from mlx_llama4.tools.tool_file import ToolFile

F, G = ToolCall("f", {"a": 1}), ToolCall("g", {})


class FakeTools:
    def __init__(self) -> None:
        self.events: list[str] = []

    def prepared(self, call: ToolCall) -> ToolCall:
        return call

    def check(self, call: ToolCall) -> str | None:
        return None if call.name in ("f", "g") else f"error: there is no tool {call.name}"

    def run(self, call: ToolCall, timeout_seconds: float) -> str:
        self.events.append(f"run {shown_call(call)} {timeout_seconds:g}")
        return f"{call.name}'s result"


class Talk:
    """A user who types these answers in turn, and then ends the input."""

    def __init__(self, *typed: str):
        self.tools = FakeTools()
        self.typed = iter(typed)
        self.consent = Consent(self.tools, self.ask, self.say, 5)

    @property
    def events(self) -> list[str]:
        return self.tools.events

    def ask(self, question: str) -> str:
        self.events.append("ask")
        assert question == QUESTION
        try:
            return next(self.typed)
        except StopIteration:
            raise EOFError from None

    def say(self, text: str) -> None:
        self.events.append(f"say {text}")


@pytest.mark.parametrize("typed", ["y", "Y", "yes", " YES ", "always", "Always\n"])
def test_yes(typed: str) -> None:
    talk = Talk(typed)
    assert talk.consent.answer([F]) == ["f's result"]
    assert talk.events == ["say f(a=1)", "ask", "run f(a=1) 5", "say → f's result"]


@pytest.mark.parametrize(
    "typed", ["", "n", "no", "N", "ye", "yy", "y.", "ja", "a", "alway", "y n", "\x00y", "true", "1"]
)
def test_anything_else_is_no(typed: str) -> None:
    talk = Talk(typed, typed)
    assert talk.consent.answer([F, G]) == [DECLINED, DECLINED]
    assert talk.events == ["say f(a=1)", "ask", "say g()", "ask"]


def test_end_of_input_is_no() -> None:
    talk = Talk()
    assert talk.consent.answer([F, G]) == [DECLINED, DECLINED]
    assert not [event for event in talk.events if event.startswith("run")]


def test_calls_are_asked_and_run_in_order() -> None:
    talk = Talk("y", "n", "y")
    assert talk.consent.answer([F, G, F]) == ["f's result", DECLINED, "f's result"]
    assert [event for event in talk.events if not event.startswith("say")] == [
        "ask", "run f(a=1) 5", "ask", "ask", "run f(a=1) 5",
    ]  # fmt: skip


def test_always_is_for_one_function_and_this_session() -> None:
    talk = Talk("always", "n", "n")
    other = ToolCall("f", {"a": 2})
    assert talk.consent.answer([F, G, other]) == ["f's result", DECLINED, "f's result"]
    assert talk.consent.answer([other, G]) == ["f's result", DECLINED]
    assert talk.events.count("ask") == 3
    assert talk.events.count("say f(a=2)") == 2  # shown all the same
    assert Talk("n").consent.answer([F]) == [DECLINED]


def test_calls_that_cannot_be_run_are_not_asked_about() -> None:
    talk = Talk("y")
    assert talk.consent.answer([ToolCall("h", {})]) == ["error: there is no tool h"]
    assert talk.events == ["say h()", "say → error: there is no tool h"]


def test_ctrl_c_is_passed_on_and_nothing_runs() -> None:
    tools = FakeTools()

    def interrupted(question: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Consent(tools, interrupted, lambda text: None).answer([F, G])
    assert tools.events == []


def test_calls_as_they_are_shown() -> None:
    call = ToolCall("f", {"a": 'x"\n', "b": [1.5, None, {"k": True}], "c": "Zürich 🦙 日本"})
    shown = 'f(a="x\\"\\n", b=[1.5, None, {"k": True}], c="Zürich 🦙 日本")'
    assert shown_call(call) == shown
    assert parse_reply(shown, ["f"]).calls == (call,)
    nasty = ToolCall("f", {"a": "\x1b[2J\x9b1m\x7f\u202egnp.exe\u200b\u2028\r\ud800"})
    assert shown_call(nasty) == (
        'f(a="\\u001b[2J\\x9b1m\\x7f\\u202egnp.exe\\u200b\\u2028\\r\\ud800")'
    )
    unseen = ToolCall("f", {"a\ufe0f": "\u3164\u2800\U000e0101é漢"})
    assert shown_call(unseen) == 'f(a\\ufe0f="\\u3164\\u2800\\U000e0101é漢")'
    assert shown_call(ToolCall("f", {"a": "x" * 5000})).count("x") == 5000  # nothing is hidden


def test_results_as_they_are_shown() -> None:
    assert shown_result("12 °C\nwindy") == "→ 12 °C\n  windy"
    assert shown_result("\x1b[31mred\x07\x9b") == "→ [31mred"
    long = shown_result("x" * 12_345)
    assert long.count("x") == 1000
    assert long.endswith("\n  [… 12,345 characters in all]")


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[ToolFile]:
    file = tmp_path / "tools.py"
    file.write_text(
        "from pathlib import Path\n"
        "def append(text: str) -> int:\n"
        '    """Append to a file."""\n'
        f"    with open({str(tmp_path / 'notes')!r}, 'a') as file:\n"
        "        return file.write(text)\n"
        "def fail():\n"
        '    """Fail."""\n'
        "    raise TypeError('\\x1b[2Jno')\n"
    )
    yield ToolFile.open(file)
    assert not (tmp_path / "owned").exists()


def test_with_a_real_file(tools: ToolFile) -> None:
    """What the model said → what it is told."""
    notes = tools.path.parent / "notes"
    said: list[str] = []
    typed = iter(["n", "y", "y", "y"])
    consent = Consent(tools, lambda question: next(typed), said.append)
    reply = '[append(text="no"), append(text="a"), fail(), append(text="b"), append(text=5)]'
    calls = parse_reply(reply, tools.names).calls
    assert consent.answer(calls) == [
        DECLINED,
        "1",
        "error: TypeError: \x1b[2Jno",
        "1",
        "error: text must be a text, not 5",
    ]
    assert notes.read_text() == "ab"
    assert "→ error: TypeError: [2Jno" in said
    assert not any("\x1b" in text for text in said)
