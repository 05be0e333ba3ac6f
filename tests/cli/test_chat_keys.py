"""Keys in the chat that a line editor knows, and what they do at the wrong moment."""

import json
import sys
from pathlib import Path

import pytest

from tests.screen import CTRL_R, ENTER, Terminal
from tests.scripted_chat import HOLD

SCRIPTED = (
    sys.executable,
    "-P",
    str(Path(__file__).parents[1] / "scripted_chat.py"),
    "answers.json",
)
TOOLS = '''
from pathlib import Path

def mark(name: str) -> str:
    """Write a file."""
    Path(name).write_text("run")
    return "done"
'''


@pytest.fixture
def home(tmp_path: Path, demo_folder: Path) -> Path:
    (tmp_path / "demo-8bit").symlink_to(demo_folder)
    (tmp_path / "tools.py").write_text(TOOLS)
    return tmp_path


def scripted(home: Path, *answers: str, arguments: tuple[str, ...] = (), **options) -> Terminal:
    (home / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    arguments = ("chat", "--model", "demo-8bit", *arguments)
    return Terminal(*arguments, home=home, command=SCRIPTED, **options)


def test_a_message_is_searched_for_and_sent(home: Path) -> None:
    with scripted(home, "One.", "Two.") as chat:
        chat.until_asked()
        chat.enter("the first message")
        chat.type(CTRL_R)
        chat.until("I-search backward:")
        chat.type("first")
        chat.until("I-search backward: first")
        chat.type(ENTER)
        chat.settle(0.3)
        assert "I-search" not in chat.text()
        chat.type(ENTER)
        chat.until("Two.", 10)
        assert chat.text().count("> the first message") == 2


def test_what_was_typed_ahead_is_no_consent(home: Path) -> None:
    tools = ("--tools", "tools.py")
    with scripted(
        home,
        f'Well, let me see what I can do. {HOLD}[mark(name="was-run")]',
        "Good.",
        arguments=tools,
    ) as chat:
        chat.until_asked()
        chat.type("Do it" + ENTER)
        chat.until("Well, let", 10)
        chat.type("y" + ENTER)
        chat.settle()
        (home / "go").touch()
        chat.until("Run it? y/N/always")
        chat.settle(1)
        assert "→" not in chat.text() and not (home / "was-run").exists()
        chat.type("n" + ENTER)
        chat.until("Good.")
        assert not (home / "was-run").exists()


def test_pasted_lines_behind_a_message_are_no_consent(home: Path) -> None:
    """prompt_toolkit keeps what it has read behind the Enter for its next prompt."""
    tools = ("--tools", "tools.py")
    with scripted(home, '[mark(name="was-run")]', "Good.", arguments=tools) as chat:
        chat.until_asked()
        chat.type("Do it" + ENTER + "y" + ENTER)
        chat.until("Run it? y/N/always")
        chat.settle(1)
        assert "→" not in chat.text() and not (home / "was-run").exists()


def test_ctrl_z_suspends(home: Path) -> None:
    """To the shell that the chat was begun from; here there is none, and it goes on at once."""
    with scripted(home) as chat:
        chat.until_asked()
        chat.type("half \x1aa message")
        chat.until("half a message", 10)
