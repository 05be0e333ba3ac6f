"""Answers as they come, in a terminal emulator: what is on the screen, and what never moves."""

import io
import itertools
import re

import pyte
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from mlx_llama4.cli.markdown import blocks
from mlx_llama4.cli.markdown.renderer import StreamingMarkdown

ROWS = 8


class Terminal:
    """A console whose output an emulator shows, with what has scrolled off."""

    def __init__(self, width: int, **options: object):
        self.out = io.StringIO()
        self.console = Console(file=self.out, width=width, force_terminal=True, **options)
        self.screen = pyte.HistoryScreen(width, ROWS, history=10_000)
        self.screen.set_mode(pyte.modes.LNM)
        self.stream = pyte.Stream(self.screen)
        self.answer = StreamingMarkdown(self.console)

    def feed(self, *pieces: str) -> "Terminal":
        for piece in pieces:
            self.answer.feed(piece)
            self.update()
        return self

    def finish(self) -> "Terminal":
        self.answer.finish()
        self.update()
        return self

    def update(self) -> None:
        # pyte drops what follows these in a row; real terminals take them or leave them.
        self.stream.feed(re.sub("[\u200d\ufe0f]", "", self.out.getvalue()))
        self.out.seek(0)
        self.out.truncate()

    def scrolled(self) -> list[str]:
        return [
            "".join(row[x].data for x in range(self.screen.columns)).rstrip()
            for row in self.screen.history.top
        ]

    def text(self) -> str:
        rows = [*self.scrolled(), *(row.rstrip() for row in self.screen.display)]
        return "\n".join(rows).rstrip("\n") + "\n"


def shown(text: str, width: int) -> str:
    return Terminal(width).feed(text).finish().text()


LONG = """\
# A *title*

Some **bold text that is long enough to span two rows of any terminal here**, `code`, 5*3.
See [the docs](https://example.com/a/b) and <b>HTML</b> &amp; so on.

9. nine
10. ten
    - deeper **b**
"""
AT_40 = """\
A title

Some bold text that is long enough to
span two rows of any terminal here,
code, 5*3.
See the docs (https://example.com/a/b)
and <b>HTML</b> & so on.

9. nine
10. ten
    • deeper b
"""
CODE = """\
1. Run:
   ```python
   def f(x):
       return "a line longer than forty columns, wrapped by the terminal"
   ```
> quoted
> - item
"""
CODE_AT_40 = """\
1. Run:

   ```python
   def f(x):
       return "a line longer than forty
columns, wrapped by the terminal"
   ```

│ quoted
│ • item
"""
TABLE = "a\n| x | y |\n|---|--:|\n| 漢字 | **1** |\n| b | 22 |\n\n---\nend"
TABLE_AT_40 = """\
a

x       y
─────────
漢字    1
b      22

───────────────────────────────────────

end
"""


@pytest.mark.parametrize(
    ("source", "golden"), [(LONG, AT_40), (CODE, CODE_AT_40), (TABLE, TABLE_AT_40)]
)
def test_golden(source: str, golden: str) -> None:
    assert shown(source, 40) == golden


# fmt: off
PARTS = [
    "word ", "longer-word ", "漢字", "。", "👨\u200d👩\u200d👧", "👍🏽", "❤\ufe0f", "e\u0301",
    "שלום ", "**", "*", "_", "`", "```", "```py\n", "\n", "\n\n", "- ", "1. ", "> ", "# ", "  ",
    "    ", "| a | b |\n", "|---|---|\n", "|", "[x](", ")", "[", "]", "<b>", "&lt;", "---",
    "===\n", "\\", "http://a.b/c_d", "~~", "!", "\t", "averyveryverylongwordthatfillsrows",
    "\x1b[2J", "x", "2*3 ", "\u00a0",
]
# fmt: on
DOCUMENTS = st.lists(st.sampled_from(PARTS), max_size=30).map("".join)


@settings(max_examples=80, deadline=None)
@given(DOCUMENTS, st.sampled_from([200, 80, 40, 20]), st.randoms(use_true_random=False))
@example(LONG, 20, None)
@example(CODE, 20, None)
@example(TABLE, 20, None)
@example("- # \nword averyveryverylongwordthatfillsrows", 20, None)
@example("\\\taveryveryverylongwordthatfillsrows-and-more ", 40, None)
def test_however_it_is_cut(text: str, width: int, random: object) -> None:
    """The same in the end, and nothing that has scrolled off was ever different."""
    sizes = (random.randint(1, 9) for _ in itertools.count()) if random else itertools.repeat(1)
    terminal, left = Terminal(width), text
    scrolled: list[str] = []
    while left:
        size = next(sizes)
        terminal.feed(left[:size])
        left = left[size:]
        assert terminal.scrolled()[: len(scrolled)] == scrolled
        scrolled = terminal.scrolled()
    assert terminal.finish().text() == shown(text, width)
    assert terminal.screen.cursor.x == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["alpha", "**beta**", "`gamma`", "漢字", "*delta*", "- ", "\n\n",
                                 "\n", "1. ", "> ", "```\n", "(x)"]), max_size=25))  # fmt: skip
def test_no_word_is_lost(parts: list[str]) -> None:
    screen = "".join(shown(" ".join(parts), 20).split())
    for word in ("alpha", "beta", "gamma", "delta", "(x)"):
        written = sum(word in part for part in parts)
        assert screen.replace("│", "").count(word) == written, screen


def test_words_show_as_they_come() -> None:
    terminal = Terminal(40).feed("Hello **wor")
    assert terminal.text() == "Hello wor\n"
    assert terminal.feed("ld", "** and `co").text() == "Hello world and co\n"
    terminal.feed("de`.\n\n```py\nx =")
    assert terminal.text() == "Hello world and code.\n\n```py\nx =\n"
    terminal.feed(" 1\n``")
    assert terminal.feed("`\n").text().endswith("x = 1\n```\n")


def test_bold_and_code_have_their_styles() -> None:
    terminal = Terminal(40, color_system="standard").feed("**b** `c`\n").finish()
    row = terminal.screen.buffer[0]
    assert (row[0].bold, row[2].bold, row[2].fg) == (True, False, "cyan")
    plain = Terminal(40, color_system="standard", no_color=True).feed("**b** `c`\n").finish()
    assert (plain.screen.buffer[0][0].bold, plain.screen.buffer[0][2].fg) == (True, "default")


def test_a_resize_leaves_what_is_above() -> None:
    terminal = Terminal(60).feed("first row\n\nSecond **paragraph with words ")
    before = terminal.text()
    terminal.screen.resize(ROWS, 30)
    terminal.console.width = 30
    terminal.feed("and** more, until the row is full and another begins and so on\n\nlast").finish()
    text = terminal.text()
    assert text.startswith(before.splitlines()[0] + "\n\n")
    assert text.count("first row") == 1
    assert text.endswith("\n\nlast\n")
    assert "\x1b[" not in text


def test_not_a_terminal() -> None:
    """Rows come when they are whole, and no control characters."""
    for options in (
        {"force_terminal": False},
        {"force_terminal": True, "_environ": {"TERM": "dumb"}},
    ):
        out = io.StringIO()
        answer = StreamingMarkdown(Console(file=out, width=40, height=20, **options))
        for character in LONG:
            answer.feed(character)
        answer.finish()
        assert out.getvalue() == AT_40


def test_the_model_cannot_drive_the_terminal() -> None:
    out = io.StringIO()
    answer = StreamingMarkdown(Console(file=out, width=40, force_terminal=True, no_color=True))
    answer.feed("a\x1b]0;title\x07b &#27;[2J &#x9b;2J\x9b1A `\x1b[2J`\n```\x1b\n\x1b[2J\n")
    answer.finish()
    assert not set(out.getvalue().replace("\x1b[2m", "").replace("\x1b[0m", "")) & {"\x1b", "\x9b"}


@pytest.mark.parametrize("unit", ["- an item of a long list\n", "words in one long paragraph ",
                                  "> quoted\n", "```\ncode\n```\n", "漢字", "*a `b "])  # fmt: skip
def test_long_answers_stay_cheap(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is parsed again and again is the unfinished end, however long the answer is."""
    parse = blocks.parse
    parsed = 0

    def counted(source: str, *rest: object) -> object:
        nonlocal parsed
        parsed += len(source)
        return parse(source, *rest)

    monkeypatch.setattr(blocks, "parse", counted)

    def work(size: int) -> int:
        nonlocal parsed
        parsed = 0
        answer = StreamingMarkdown(Console(file=io.StringIO(), width=80, force_terminal=True))
        text = unit * (size // len(unit))
        for at in range(0, len(text), 8):
            answer.feed(text[at : at + 8])
        return parsed

    assert 0 < work(4_000) < 6 * work(1_000)  # 4 if linear, 16 if quadratic
