"""The chat as it is seen: driven on a terminal, compared with screens kept in golden/screens/.

    REMAKE_SCREENS=1 python -m pytest tests/cli/test_chat_screens.py

writes those anew; look at each before it is committed (`git diff tests/golden/screens`). They hold
what has scrolled off too, without blanks at the ends of lines. Figures of speed and memory, and the
end of the status line from there on, are dots; the folder's name, always as long, is x's.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mlx_llama4.demo.questions import PICTURES
from tests.screen import CTRL_C, CTRL_D, CTRL_U, ENTER, TAB, UP, Terminal, environment_at
from tests.scripted_chat import HOLD, command

GOLDENS = Path(__file__).parents[1] / "golden" / "screens"
CHAT = ("chat", "--model", "demo-8bit")

COLOUR = re.compile(rb"\x1b\[[0-9;]*\b(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])\b[0-9;]*m")

# A little of everything that is hard to show.
MARKDOWN = """\
# Three shapes

A **bold** word, an *italic* one, `code` and a line that is long enough to be wrapped wherever it \
is shown, so that words must not be cut.

1. a red star ⭐ and 漢字 that take two cells each, 一二三四五六七八九十一二三四五六七八九十
2. a list in the list:
   - שלום עולם
   - 👩‍💻 a joined emoji

| shape | sides |
|-------|------:|
| star | 10 |
| square | 4 |

> quoted, and long enough to be wrapped on a narrow terminal at least once or twice

```python
def area(side: float) -> float:
    return side**2  # a comment that is wider than forty columns are
```

An unfinished fence:

```sh
echo "still code"
"""

SHORT = "# Heading\n\n1. **bold**\n2. 漢字\n\n```python\nreturn 1  # one\n```\n"

LONG = f"""\
Before the window changes, a paragraph that is much longer than a row of the terminal, so that it \
has been wrapped more than once when that happens. {HOLD}After it has become narrower, what comes \
next is wrapped where the window now ends, and what was there before stays as it was.
"""


@pytest.fixture
def home(demo_folder: Path) -> Iterator[Path]:
    """A home whose name is always as long, with the demo model and pictures in it."""
    with tempfile.TemporaryDirectory(prefix="chat-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "demo-8bit").symlink_to(demo_folder)
        pictures = folder / "my pictures"
        pictures.mkdir()
        shutil.copy(PICTURES / "first.png", pictures / "the first.png")
        shutil.copy(PICTURES / "second.png", pictures / "second (2).png")
        yield folder


def scripted(home: Path, *answers: str, more: Sequence[str] = (), **options: object) -> Terminal:
    return Terminal(*CHAT, *more, home=home, command=command(home, *answers), **options)


def masked(text: str, home: Path) -> str:
    text = text.replace(str(home), re.sub(r"[^/-]+$", lambda name: "x" * len(name[0]), str(home)))
    text = re.sub(r"(of [\d,]+ tokens) │.*", r"\1 │ …", text)
    text = re.sub(r"[\d,.]+ (tokens/s|[kKMG]?B)\b", r"… \1", text)
    return re.sub(r"(first token +)[\d.]+ s", r"\1… s", text)


def check(name: str, text: str, home: Path) -> None:
    path = GOLDENS / f"{name}.txt"
    shown = masked(text, home) + "\n"
    if os.environ.get("REMAKE_SCREENS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")


def test_three_turns_with_pictures_then_resumed(home: Path) -> None:
    answers = ("The triangle is in the second image.", "7 plus 5 is 12.", "Two.", "Two images.")
    with scripted(home, *answers, rows=40) as chat:
        chat.until_asked()
        quoted = f"'{home}/my pictures/the first.png'"
        escaped = f"{home}/my pictures/second (2).png".replace(" ", r"\ ")
        escaped = escaped.replace("(", r"\(").replace(")", r"\)")
        chat.paste(f"{quoted} {escaped} ")  # as two files dropped at once
        chat.enter("Which image has a triangle?")
        check("two_pictures", chat.text(), home)
        chat.enter("What is 7 plus 5?")
        chat.enter("How many images are there?")
        chat.enter("/retry")
        chat.enter("/undo")
        chat.enter("/images")
        chat.enter("/stats")
        chat.enter("/save kept.safetensors")
        chat.enter("/retyr")
        chat.type(CTRL_D)
        assert chat.until_done() == 0
        check("three_turns", chat.text(), home)
    with scripted(home, "7 plus 5 is 12.", more=["--resume"], rows=40) as chat:
        chat.until_asked()
        chat.type(UP)
        chat.until("> /retyr")
        chat.type(UP)
        chat.until("> /save kept.safetensors")
        chat.type(CTRL_C)
        chat.until_asked()
        chat.enter("What is 7 plus 5?")
        chat.enter("/images")
        check("resumed", chat.text(), home)


def test_ctrl_c_and_a_window_made_narrower_while_it_answers(home: Path) -> None:
    with scripted(home, f"The first half{HOLD}.", LONG, rows=30) as chat:
        chat.until_asked()
        chat.type("Hello" + ENTER)
        chat.until("The first")
        chat.settle()
        chat.type(CTRL_C)
        chat.until("[stopped]")
        chat.until_asked()
        chat.type("Go on" + ENTER)
        chat.until("that happens")
        chat.settle()
        chat.type("typed ahead")
        chat.settle()
        chat.resize(50, 30)
        (home / "go").touch()
        chat.until("> typed ahead")
        chat.type(CTRL_U)
        chat.until_asked()
        chat.enter("/tokens")  # both answers are there, the first one as far as it came
        check("stopped_and_resized", chat.text(), home)
        chat.process.send_signal(signal.SIGTERM)
        assert chat.until_done() == 128 + signal.SIGTERM
        assert len([*(home / "state/mlx-llama4/sessions").iterdir()]) == 1


@pytest.mark.parametrize("columns", [40, 200])
def test_markdown_and_help(home: Path, columns: int) -> None:
    with scripted(home, MARKDOWN, columns=columns, rows=30) as chat:
        chat.until_asked()
        chat.enter("Describe the shapes.")
        chat.type("/re" + TAB)
        chat.settle()
        check(f"markdown_{columns}", chat.text(), home)
        chat.type(CTRL_C)
        chat.until_asked()
        chat.enter("/help")
        chat.enter("/context")
        chat.type("/quit" + ENTER)
        assert chat.until_done() == 0
        check(f"help_{columns}", chat.text().partition("> /re")[2], home)


def test_no_colour_and_a_terminal_that_is_closed(home: Path) -> None:
    with scripted(home, SHORT, NO_COLOR="1") as chat:
        chat.until_asked()
        chat.enter("Describe the shapes.")
        assert "Heading" in chat.text()
        chat.type("/image my" + TAB)
        chat.until(r"> /image my\ pictures/")
        chat.type("the" + TAB)
        chat.until(r"> /image my\ pictures/the\ first.png")
        chat.type(ENTER)
        chat.until("[the first.png: ")
        chat.until_asked()
        assert not COLOUR.search(chat.raw), COLOUR.search(chat.raw)
        chat.hang_up()
        assert chat.process.wait(30) == 128 + signal.SIGHUP
        assert len([*(home / "state/mlx-llama4/sessions").iterdir()]) == 1


def test_what_was_typed_ahead_is_no_consent_on_a_dumb_terminal(home: Path) -> None:
    """A model could have it typed: "press y and Enter while I think". test_chat_keys.py has the
    same for the editor.
    """
    tool = 'def mark() -> str:\n    """Leave a mark."""\n    open("mark", "w").close()\n'
    (home / "tools.py").write_text(tool)
    answers = (f"Press y and Enter. {HOLD}[mark()]", "Done.")
    with scripted(home, *answers, more=["--tools", "tools.py"], TERM="dumb") as chat:
        chat.until("\n>")
        chat.type("Mark it." + ENTER)
        chat.until("and Enter.")
        chat.type(f"y{ENTER}always{ENTER}")
        chat.settle()
        (home / "go").touch()
        chat.until("y/N/always")
        chat.settle(0.5)
        assert not (home / "mark").exists()
        chat.type("y" + ENTER)
        chat.until("Done.")
        assert (home / "mark").exists()


def test_dumb_terminal(home: Path) -> None:
    with scripted(home, SHORT, TERM="dumb", rows=50) as chat:
        chat.until("\n>")
        chat.type("'my pictures/the first.png' What is it?" + ENTER)
        chat.until("```\n>")
        chat.settle()
        chat.type("/stats" + ENTER)
        chat.until("in all")
        chat.type(CTRL_C)
        chat.until("leaves]")
        chat.settle()
        chat.type(CTRL_D)
        assert chat.until_done() == 0
        assert b"\x1b" not in chat.raw
        check("dumb", chat.text(), home)


def test_piped(home: Path) -> None:
    lines = (
        "'my pictures/the first.png' 'my pictures/second (2).png' Which image has a triangle?\n"
        '/nothing\n/reset\n"""What is 7\nplus 5?"""\n/stats\n'
    )
    result = subprocess.run(
        [sys.executable, "-m", "mlx_llama4", *CHAT], cwd=home, env=environment_at(home),
        input=lines, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "\x1b" not in result.stdout + result.stderr
    check("piped_output", result.stdout.rstrip("\n"), home)
    check("piped_errors", result.stderr.rstrip("\n"), home)
    kept = [path.name for path in (home / "state" / "mlx-llama4").iterdir()]
    assert kept == ["models.json"]  # which folder was used, and nothing that was said
