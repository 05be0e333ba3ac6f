"""The terminal that tests of the screen rely on, with small programs on it."""

import sys
from pathlib import Path

import pytest

from tests.screen import CTRL_C, ENTER, Terminal


def python(code: str, home: Path, **options: object) -> Terminal:
    return Terminal("-c", code, home=home, command=(sys.executable,), **options)


def test_what_is_drawn(tmp_path: Path) -> None:
    """Colours, wide and joined characters, what is written over, what is for other programs."""
    code = (
        r"print('\x1b[31mred\x1b[0m wide 漢字 \U0001f469\u200d\U0001f4bb after   ');"
        r"print('gone\r\x1b[Kke\x01pt\x1b_Ga=q;AAAA\x1b\\\x1b[>4;2m!')"
    )
    with python(code, tmp_path) as terminal:
        assert terminal.until_done() == 0
        assert terminal.text() == "red wide 漢字 \U0001f469\u200d\U0001f4bb after\nkept!"
        first, last = terminal.lines()[0][0], terminal.lines()[1][-1]
        assert (first.data, first.fg, last.underscore) == ("r", "red", False)
        assert b"\x1b[31m" in terminal.raw


def test_sequences_cut_in_two_by_a_read(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        r"for part in ('a\x1b', '[3', '1mb', '\x1b_G', 'x;y\x1b', '\\c', '\u6f22'):"
        "\n    sys.stdout.write(part); sys.stdout.flush(); time.sleep(0.1)\n"
    )
    with python(code, tmp_path) as terminal:
        terminal.until_done()
        assert terminal.text() == "abc漢"


def test_what_scrolls_off_is_kept(tmp_path: Path) -> None:
    with python("print(*range(100), sep='\\n')", tmp_path, rows=5) as terminal:
        terminal.until_done()
        assert terminal.text().splitlines() == list(map(str, range(100)))


def test_questions_are_answered(tmp_path: Path) -> None:
    code = (
        "import sys, termios, tty; tty.setcbreak(0)\n"
        r"sys.stdout.write('ab\x1b[6n'); sys.stdout.flush()"
        "\nanswer = ''\nwhile not answer.endswith('R'): answer += sys.stdin.read(1)\n"
        "print(repr(answer))"
    )
    with python(code, tmp_path) as terminal:
        assert terminal.until_done() == 0
        assert r"'\x1b[1;3R'" in terminal.text()


def test_size_and_resizing(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "def show(*_): print(*os.get_terminal_size())\n"
        "signal.signal(signal.SIGWINCH, show); show(); signal.pause()"
    )
    with python(code, tmp_path, columns=200, rows=40) as terminal:
        terminal.until("200 40")
        terminal.settle()
        terminal.resize(40, 10)
        terminal.until("40 10")
        assert terminal.until_done() == 0
        assert terminal.text() == "200 40\n40 10"


def test_fewer_rows_push_what_is_above_into_the_scrollback(tmp_path: Path) -> None:
    with python("print(*range(8), sep='\\n'); input()", tmp_path, rows=10) as terminal:
        terminal.until("7")
        terminal.settle()
        terminal.resize(20, 4)
        assert terminal.text().splitlines() == list(map(str, range(8)))
        assert (terminal.display.cursor.y, terminal.display.cursor.x) == (3, 0)
        terminal.type("typed")
        terminal.until("7\ntyped")


def test_ctrl_c_reaches_the_program(tmp_path: Path) -> None:
    code = "try:\n    print('on'); input()\nexcept KeyboardInterrupt: print('stopped')"
    with python(code, tmp_path) as terminal:
        terminal.until("on")
        terminal.settle()  # between Python's last look for signals and the read it would be lost
        terminal.type(CTRL_C)
        terminal.until("stopped")


def test_line_editor(tmp_path: Path) -> None:
    """When it asks, what is pasted, and that the user's own files are out of reach."""
    code = (
        "import os, prompt_toolkit\n"
        "session = prompt_toolkit.PromptSession()\n"
        "while (line := session.prompt('> ')) != 'end': print(repr(line))\n"
        "print(os.environ['HOME'])"
    )
    with python(code, tmp_path, columns=120) as terminal:
        terminal.until_asked()
        terminal.enter("typed")
        terminal.paste("two\nlines")
        terminal.until("lines")
        terminal.type(ENTER)
        terminal.until_asked()
        terminal.type("end" + ENTER)
        assert terminal.until_done() == 0
        said = [line for line in terminal.text().splitlines() if line.startswith("'")]
        assert said == ["'typed'", r"'two\nlines'"]
        assert terminal.text().endswith(str(tmp_path))


def test_failures_show_the_screen(tmp_path: Path) -> None:
    with (
        python("print('here')", tmp_path) as terminal,
        pytest.raises(AssertionError, match=r"'there' to be seen; .* has ended.*\n\| here"),
    ):
        terminal.until("there")
    with (
        python("print('here'); input()", tmp_path) as terminal,
        pytest.raises(AssertionError, match=r"the prompt; the program goes on.*\n\| here"),
    ):
        terminal.until_asked(0.5)
