"""A chat whose model calls tools: what is asked, run, fed back and refused."""

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_llama4.chat import Chat
from mlx_llama4.cli.talk.commands import run_command
from mlx_llama4.cli.talk.talk import Talk
from mlx_llama4.cli.talk.tool_consent import Consent
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.tools.tool_file import ToolFile


def scripted(chat: Chat, answers: Sequence[str]):
    """A sampler that says what it is told, whatever the model thinks."""
    end = chat.processor.tokenizer.special_id("<|eot|>")
    ids = iter(
        [token for text in answers for token in [*chat.processor.tokenizer.encode(text), end]]
    )
    # Decoding is a token ahead of what is shown, so an answer is followed by one token more.
    waiting: list[int] = []

    def sample(logits: mx.array) -> mx.array:
        if waiting and waiting[-1] == end and len(waiting) > 1:
            waiting.clear()
            return mx.array([end])
        waiting.append(next(ids))
        return mx.array([waiting[-1]])

    return sample


TOOLS = '''
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b
'''


@pytest.fixture
def tools(tmp_path: Path) -> ToolFile:
    (tmp_path / "tools.py").write_text(TOOLS)
    return ToolFile.open(tmp_path / "tools.py")


@pytest.mark.parametrize("consent", ["y", "no"])
def test_tools(talk: Talk, said, tools: ToolFile, consent: str) -> None:
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return consent

    shown: list[str] = []
    talk.consent = Consent(tools, ask, shown.append)
    talk.chat.options.tools = tools.definitions
    answers = ["Let me see. [add(a=7, b=5), add(a=1, b=1)]", "It is 12."]
    talk.chat.options.settings = GenerationSettings(sampler=scripted(talk.chat, answers))
    talk.say("What is 7 plus 5?")
    assert said()[0] == f"{answers[0]}\n{answers[1]}\n"
    roles = [message["role"] for message in talk.chat.messages]
    assert roles == ["user", "assistant", "ipython", "ipython", "assistant"]
    calls = talk.chat.messages[1]["tool_calls"]
    assert calls == [{"name": "add", "arguments": {"a": 7, "b": 5}},
                     {"name": "add", "arguments": {"a": 1, "b": 1}}]  # fmt: skip
    results = [message["content"] for message in talk.chat.messages[2:4]]
    assert len(asked) == 2 and any("add(a=7, b=5)" in text for text in [*shown, *asked])
    if consent == "y":
        assert results == ["12", "2"]
    else:
        assert all("declined" in result for result in results)
    # The second prompt is the first, the answer's own tokens, and the results.
    assert talk.chat.statistics.cached_tokens > 0
    first_turn = talk.chat.count_tokens(talk.chat.messages[:2])
    assert talk.chat.statistics.cached_tokens in (first_turn - 1, first_turn)
    assert talk.chat.reply.calls == () and talk.chat.reply.text == "It is 12."
    run_command(talk, "/undo")
    assert talk.chat.messages == []


def test_what_is_no_call_is_shown_and_not_run(talk: Talk, said, tools: ToolFile) -> None:
    def ask(question: str) -> str:
        raise AssertionError(question)

    talk.consent = Consent(tools, ask, print)
    talk.chat.options.tools = tools.definitions
    talk.chat.options.settings = GenerationSettings(
        sampler=scripted(talk.chat, ['[add(a=open("x"), b=5)]', ""])
    )
    talk.say("What is 7 plus 5?")
    assert "[no call that can be run: " in said()[1]
    assert "tool_calls" not in talk.chat.messages[-1]
