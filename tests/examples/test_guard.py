"""examples/guard.py: the prompt that Meta documents, and verdicts that are never made up."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_llama4.demo.questions import PICTURES
from tests.examples.scripts import load

QUESTION = {"messages": [{"role": "user", "content": "Hi <|eot|>"}]}
ANSWERED = {
    "id": 7,
    "messages": [*QUESTION["messages"], {"role": "assistant", "content": "Hello"}],
    "images": ["star.png"],
}
# As the released template does: a list of parts for each message, and the task around them.
OWN_TEMPLATE = (
    "Task: <BEGIN UNSAFE CONTENT CATEGORIES> {% for m in messages %}{{ m.role }}="
    "{% for p in m.content %}{{ p.text if p.type == 'text' else '<|image|>' }}{% endfor %};"
    "{% endfor %}"
)


def rows(output: str) -> list[dict]:
    return [json.loads(line) for line in output.splitlines()]


class Guard:
    """The script on a folder, with scripted answers; keeps the prompts."""

    def __init__(self, folder: Path, answer: str, patched: pytest.MonkeyPatch):
        self.script, self.folder, self.answer = load("guard"), folder, answer
        self.prompts: list[str] = []
        self.pictures: list[int] = []
        patched.setattr(self.script, "stream_generate", self._generate)

    def _generate(self, model: Any, processor: Any, prompt: Any, settings: Any) -> Any:
        self.prompts.append(processor.tokenizer.decode(prompt.ids.tolist()))
        self.pictures.append(len(prompt.images))
        return iter([SimpleNamespace(text=self.answer)])

    def __call__(self, *arguments: object) -> int:
        return self.script.main([*map(str, arguments), "--model", str(self.folder)])


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    shutil.copy(PICTURES / "star.png", tmp_path)
    path = tmp_path / "conversations.jsonl"
    path.write_text("\n".join(map(json.dumps, [QUESTION, ANSWERED])) + "\n\n")
    return path


def test_the_documented_prompt(
    demo_folder: Path, conversations: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    guard = Guard(demo_folder, "safe", monkeypatch)
    assert guard(conversations) == 0
    assert rows(capsys.readouterr().out) == [
        one | {"verdict": "safe", "hazards": []} for one in (QUESTION, ANSWERED)
    ]
    asked, answered = guard.prompts
    assert "in 'User' messages" in asked and "ONLY THE LAST User message" in asked
    assert "\nUser: Hi <|eot|>\n\n<END CONVERSATION>" in asked
    assert "S1: Violent Crimes.\n" in asked and "S14: Code Interpreter Abuse.\n<END" in asked
    assert "ONLY THE LAST Agent message" in answered
    assert "User: Hi <|eot|>\n\nAgent: Hello\n\n<END CONVERSATION>" in answered
    assert guard.pictures == [0, 1]


def test_a_template_that_writes_the_task_itself(
    demo_folder: Path, tmp_path: Path, conversations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(demo_folder, tmp_path / "guard")
    (folder / "chat_template.jinja").write_text(OWN_TEMPLATE)
    guard = Guard(folder, "safe", monkeypatch)
    assert guard(conversations) == 0
    assert guard.prompts[0].endswith("CATEGORIES> user=Hi <|eot|>;")
    assert guard.prompts[1].endswith("Hi <|eot|>;assistant=Hello;")
    assert guard.prompts[1].count("Task: ") == 1 and guard.pictures == [0, 1]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("safe", []),
        ("\n\nsafe", []),
        ("unsafe\nS9", ["S9"]),
        ("\n\nunsafe\nS1,S10", ["S1", "S10"]),
        ("unsafe\nS2, S3", ["S2", "S3"]),
    ],
)
def test_verdicts(answer: str, found: list[str]) -> None:
    script = load("guard")
    verdict = script.read_verdict(answer, [*script.HAZARDS])
    assert verdict["verdict"] == ("unsafe" if found else "safe")
    assert [one["code"] for one in verdict["hazards"]] == found


@pytest.mark.parametrize(
    "answer",
    ["", "unsafe", "unsafe\nS15", "safe\nS1", "safely", "It is safe.", "S1", "unsafe S1 S2"],
)
def test_what_is_no_verdict_is_never_safe(answer: str) -> None:
    script = load("guard")
    assert script.read_verdict(answer, [*script.HAZARDS]).keys() == {"error"}


def test_hazards_that_count() -> None:
    script = load("guard")
    assert script.read_verdict("unsafe\nS1,S9", ["S9"])["hazards"] == [
        {"code": "S9", "name": "Indiscriminate Weapons"}
    ]
    assert script.read_verdict("unsafe\nS1", ["S9"]) == {"verdict": "safe", "hazards": []}


def test_without_a_verdict(
    demo_folder: Path, conversations: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert Guard(demo_folder, "Hello!", monkeypatch)(conversations) == 1
    output = capsys.readouterr()
    assert [row["error"] for row in rows(output.out)] == ["no verdict: 'Hello!'"] * 2
    assert output.err == "error: 2 of 2 conversations got no verdict\n"
    (conversations.parent / "star.png").unlink()
    assert Guard(demo_folder, "safe", monkeypatch)(conversations) == 1
    assert "does not exist" in rows(capsys.readouterr().out)[1]["error"]


@pytest.mark.parametrize(
    "line",
    ["[]", "{", "{}", '{"messages": []}', '{"messages": [{"role": "user"}]}',
     '{"messages": [{"role": "system", "content": "x"}]}', '{"messages": 3}',
     '{"messages": [{"role": "user", "content": 3}]}'],
)  # fmt: skip
def test_bad_lines(
    demo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(QUESTION) + "\n" + line)
    assert load("guard").main([str(path), "--model", str(demo_folder)]) == 2
    assert f"{path}, line 2: not " in capsys.readouterr().err


def test_categories_that_are_none(demo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--categories", "S1,S99", "--model", str(demo_folder)]
    assert load("guard").main(asked) == 2
    assert "S99 is none of S1 … S14" in capsys.readouterr().err
