"""Turn code, line by line, and whole tables into rows of text."""

from rich import box
from rich.console import Console, JustifyMethod
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from mlx_llama4.cli.markdown.blocks import Leaf, inline

THEME = "ansi_dark"  # the terminal's own colours, readable on light and dark
TAB = 4  # columns
STEP = 10  # lines between attempts to forget earlier ones
AGREE = 5  # lines that must look the same without the earlier ones
SIDES: dict[str, JustifyMethod] = {"left": "left", "center": "center", "right": "right"}
MOST = 80  # lines to remember at most


class Highlighter:
    """Colours the lines of one code block, looking back only as far as that matters."""

    def __init__(self, language: str):
        self._syntax = Syntax("", language or "text", theme=THEME, background_color="default")
        self._before: list[str] = []

    def line(self, line: str) -> Text:
        """Colour an unfinished line quickly, looking back only a few lines."""
        return self._highlight([*self._before[-2 * STEP :], line])[-1]

    def add(self, line: str) -> Text:
        """Colour a line that is complete."""
        text = self._highlight([*self._before, line])[-1]
        self._before.append(line)
        if len(self._before) % STEP == 0 and len(self._before) > STEP:
            fewer = self._before[-STEP:]
            if len(self._before) >= MOST or self._same_end(fewer):
                self._before = fewer
        return text

    def _same_end(self, fewer: list[str]) -> bool:
        """Whether the lines look the same without earlier ones (no open string, for example)."""
        before, after = self._highlight(self._before), self._highlight(fewer)
        return all(
            one.plain == other.plain and one.spans == other.spans
            for one, other in zip(before[-AGREE:], after[-AGREE:], strict=True)
        )

    def _highlight(self, lines: list[str]) -> list[Text]:
        lines = [line.expandtabs(TAB) for line in lines]
        found = self._syntax.highlight("\n".join(lines)).split("\n", allow_blank=True)
        rows = [*found[: len(lines)], *(Text() for _ in lines[len(found) :])]
        return [
            row if row.plain == line else Text(line) for row, line in zip(rows, lines, strict=True)
        ]


def table_rows(console: Console, leaf: Leaf, width: int) -> list[Text]:
    """Render a table at most `width` cells wide, wrapping the text of its cells."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    cells: list[Text] = []
    head = True
    for token in leaf.tokens:
        if token.type in {"th_open", "td_open"}:
            side = SIDES[str(token.attrs.get("style", "")).removeprefix("text-align:") or "left"]
        elif token.type == "inline":
            cell, _ = inline(token.content, provisional=False)
            cell.justify = side
            cells.append(cell)
        elif token.type == "tr_close":
            if head:
                for cell in cells:
                    table.add_column(cell, overflow="fold")
            else:
                table.add_row(*cells)
            cells, head = [], False
    options = console.options.update(width=width, height=None)
    rows = []
    for segments in console.render_lines(table, options, pad=False):
        row = Text.assemble(*((part.text, part.style or "") for part in segments))
        row.rstrip()
        rows.append(row)
    return rows
