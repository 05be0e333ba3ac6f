"""Render Markdown while it is generated.

A row is printed once it can no longer change, and is never touched again; only the row being
written is overwritten. So scrolling back, copying and resizing are safe. Printed text is dropped
from the source at once, so a piece costs the same however long the answer is.
"""

import re

from rich.console import Console
from rich.text import Text

from mlx_llama4.cli.console.terminal import CONTROLS
from mlx_llama4.cli.markdown import blocks
from mlx_llama4.cli.markdown.blocks import FAINT, Container, Leaf, ListOf
from mlx_llama4.cli.markdown.code import TAB, Highlighter, table_rows
from mlx_llama4.cli.markdown.row import Row

# Decide only where a word ends, or after this many characters without a space, so that an answer
# looks the same however it is cut into pieces.
UNIT = re.compile(r"\S{16}|\S{0,15}\n|\S{0,15}[^\S\n]+(?=\S|\n)")
DELIMITERS = re.compile(r"[\s>|:-]*")  # the line under a table's header, perhaps unfinished
OPENING = re.compile(r"[*_~`\[!]+$")  # marks whose text is still to come

HEADINGS = {"h1": "bold underline", "h2": "bold underline"}
RULE = 40  # characters; a longer rule would break when the window gets narrower
NARROWEST = 8  # cells for text, however deep the lists
PRINTED = "…"  # stands in the source for the printed part of a line


class StreamingMarkdown:
    """Renders one answer."""

    def __init__(self, console: Console):
        self._console = console
        self._row = Row(console)
        self._buffer = ""  # text since the last complete unit
        self._source = ""  # text that is not printed yet, and the blocks around it
        self._known = 0  # leaves at the beginning of the source that are printed
        self._numbers: dict[int, int] = {}
        self._leaves: list[Leaf] = []
        self._printed = False  # whether anything is
        self._begin_leaf()

    def feed(self, piece: str) -> None:
        """Show some more of the answer."""
        self._buffer += piece.translate(CONTROLS)
        at = 0
        while unit := UNIT.match(self._buffer, at):
            at = unit.end()
            self._advance(unit[0])
        self._buffer = self._buffer[at:]
        if self._row.live and self._leaf is not None:
            self._show_unfinished(self._leaf)

    def finish(self) -> None:
        """Show the rest; the cursor is then at the start of a new line."""
        if self._buffer:
            self._advance(self._buffer)
            self._buffer = ""
        if self._leaf is not None:
            self._print_rest(self._leaf)
        self._row.end()

    @property
    def _leaf(self) -> Leaf | None:
        """The leaf that is being written."""
        return self._leaves[self._known] if len(self._leaves) > self._known else None

    def _begin_leaf(self) -> None:
        self._spaced = False  # an empty row is printed before it
        self._begun = False  # its first row is printed
        self._continued = 0  # characters that stand for the printed part of its line
        self._lines = 0  # of indented code: printed, and still in the source
        self._ended = False
        self._highlighter: Highlighter | None = None

    def _advance(self, unit: str) -> None:
        self._source += unit
        if self._leaf and self._leaf.kind == "table" and "\n" not in unit:
            return  # nothing can be shown before the line is complete
        self._parse()
        while len(self._leaves) > self._known + 1:
            self._print_rest(self._leaves[self._known])
            self._known += 1
            self._begin_leaf()
            if len(self._leaves) == self._known + 1:
                self._drop_printed()
        if self._leaf is not None:
            self._print_certain(self._leaf)

    def _parse(self) -> None:
        self._leaves = blocks.parse(self._source, self._numbers, self._known)

    # What is printed leaves the source

    def _drop_printed(self) -> None:
        """Replace all before the last leaf with an `x` in each container that may continue."""
        before, last = self._leaves[-2:]
        holders = [part for part in before.path if isinstance(part, Container)]
        chain = {part.line: part.opening for part in holders if part.opening is not None}
        if any(part.opening is None for part in holders):
            return
        context = []
        for opening in chain.values():
            context += [f"{opening}x", re.sub(r"[^>]", " ", opening).rstrip()]
        source = "\n".join([*context, *self._source.split("\n")[last.line :]])
        lists = [part for part in before.path if isinstance(part, ListOf)]
        numbers = {i: part.number for i, part in enumerate(lists) if part.number is not None}
        leaves = blocks.parse(source, numbers, len(chain))
        if len(leaves) == len(chain) + 1 and leaves[-1].same_as(last):
            self._source, self._numbers, self._known = source, numbers, len(chain)
            self._leaves = leaves

    def _replace_lines(self, leaf: Leaf, count: int, text: str) -> None:
        """Replace the leaf's first `count` lines with `text`."""
        source = self._source.split("\n")
        source[leaf.line : leaf.line + count] = [f"{leaf.raw}{text}"]
        self._source = "\n".join(source)
        self._parse()

    # Rows that can no longer change

    def _print_certain(self, leaf: Leaf) -> None:
        lines_after = self._source.count("\n") - leaf.line
        if leaf.kind in {"text", "heading"}:
            while self._print_some_text():
                pass
        elif leaf.kind in {"fence", "code"}:
            self._print_code(leaf, final=False)
        elif leaf.kind == "rule" and lines_after:
            self._print_rest(leaf)

    def _print_rest(self, leaf: Leaf) -> None:
        """Print the rest of the leaf."""
        if leaf.kind in {"text", "heading"}:
            lines = leaf.content.split("\n")
            for number, line in enumerate(lines):
                self._print_line(leaf, line, number == 0, number + 1 < len(lines))
        elif leaf.kind in {"fence", "code"}:
            self._print_code(leaf, final=True)
        elif self._ended:
            return
        elif leaf.kind == "rule":
            self._print(leaf, Text("─" * min(self._width(leaf), RULE), FAINT))
        elif leaf.kind == "table":
            for row in table_rows(self._console, leaf, self._width(leaf)):
                self._print(leaf, row)
        elif leaf.kind == "empty":
            self._print(leaf, Text())
        self._ended = True

    def _print_line(self, leaf: Leaf, line: str, first: bool, another: bool) -> None:
        """Print a line of a paragraph, or the rest of it."""
        printed = self._continued if first else 0
        if printed and len(line) <= printed:
            return
        if another:
            line = line.rstrip().removesuffix("\\")  # a line break anyway
        text, _ = blocks.inline(line.strip(), provisional=printed > 0)
        for row in self._rows(leaf, text[printed:]):
            self._print(leaf, row)

    def _print_some_text(self) -> bool:
        """Print a complete line or a full row. Returns whether there was one."""
        leaf = self._leaves[self._known]
        lines = leaf.content.split("\n")
        source = self._source.split("\n")
        number = 1 if self._continued and len(lines[0]) <= self._continued else 0
        if leaf.raw is None or number >= len(lines):
            return False
        here = leaf.line + number
        if here < len(source) - 1:
            under = source[here + 1]
            incomplete = here + 1 == len(source) - 1
            if "|" in lines[number] and incomplete and DELIMITERS.fullmatch(under):
                return False  # it may be the header of a table
            self._print_line(leaf, lines[number], number == 0, number + 1 < len(lines))
            self._continued = len(PRINTED)
            self._replace_lines(leaf, number + 1, PRINTED)
            return True
        line = self._unfinished_line(leaf, number)
        printed = self._continued if number == 0 else 0
        if line.startswith("|"):
            return False
        text, _ = blocks.inline(line[: blocks.settled(line)], provisional=True)
        rows = self._rows(leaf, text[printed:])
        cut = _cut(line, rows[0].plain, printed) if len(rows) > 1 else None
        if cut is None:
            return False
        self._print(leaf, rows[0])
        self._continued = len(PRINTED)
        self._replace_lines(leaf, number + 1, cut)
        return True

    def _unfinished_line(self, leaf: Leaf, number: int) -> str:
        """The last line of the source's paragraph, with the spaces at its end."""
        last = self._source.rpartition("\n")[2]
        if number == 0:
            return last[len(leaf.raw or "") :]
        return leaf.content.split("\n")[number].strip() + last[len(last.rstrip()) :]

    def _print_code(self, leaf: Leaf, final: bool) -> None:
        lines = leaf.content.split("\n")
        lines = lines[:-1] if lines[-1] == "" else lines
        whole = self._source.count("\n") - leaf.line  # lines, with the fence's own
        fenced = leaf.kind == "fence"
        if not final and not whole:
            return
        if fenced and not self._begun:
            self._print(leaf, Text(leaf.markup + leaf.info, FAINT))
        if fenced:
            count = len(lines) if final or leaf.closed else whole - 1
        else:
            count = len(lines) if final else min(len(lines), whole)
        self._highlighter = self._highlighter or Highlighter(leaf.language if fenced else "")
        for number in range(self._lines, count):
            line = lines[number] if number < len(lines) else ""
            self._print(leaf, self._highlighter.add(line))
        self._lines = count
        if fenced and not self._ended and (final or (leaf.closed and whole > len(lines) + 1)):
            self._print(leaf, Text(leaf.markup, FAINT))
            self._ended = True
        if fenced and not final:
            source = self._source.split("\n")
            del source[leaf.line + 1 : leaf.line + 1 + count]
            self._source = "\n".join(source)
            self._lines = 0
            self._parse()

    def _print(self, leaf: Leaf, text: Text) -> None:
        self._show(leaf, text)
        self._row.end()
        self._begun = self._printed = True

    def _show(self, leaf: Leaf, text: Text) -> None:
        if not self._begun and not self._spaced and self._printed:
            self._print_blank(leaf)
        row = Text(leaf.rest if self._begun else leaf.first).append_text(text)
        row.expand_tabs(TAB)
        self._row.show(row)

    def _print_blank(self, leaf: Leaf) -> None:
        """Print an empty row before the leaf, but not between the items of a list."""
        shared = []
        if self._known:
            before = self._leaves[self._known - 1]
            shared = [part for part in leaf.path if part in before.path]
            if shared and len(leaf.path) > len(shared):
                return
        quotes = "".join(part.indent for part in shared if isinstance(part, Container))
        self._row.show(Text(quotes.rstrip()))
        self._row.end()
        self._spaced = True

    def _rows(self, leaf: Leaf, text: Text) -> list[Text]:
        if leaf.kind == "heading":
            text.stylize_before(HEADINGS.get(leaf.markup, "bold"))
        return blocks.wrap(text, self._width(leaf))

    def _width(self, leaf: Leaf) -> int:
        return max(self._row.width - blocks.cells(leaf.rest), NARROWEST)

    # The row that can

    def _show_unfinished(self, leaf: Leaf) -> None:
        text = None
        fresh = self._source.endswith("\n")
        if leaf.kind in {"text", "heading"}:
            text = self._unfinished_text(leaf, fresh)
        elif leaf.kind == "fence" and not leaf.closed:
            if not self._begun:
                text = Text(leaf.markup + leaf.info + self._buffer, FAINT)
            else:
                line = self._unfinished_code(leaf) + self._buffer
                text = self._highlighter.line(line) if line and self._highlighter else None
        elif leaf.kind == "table":
            text = Text((self._source + self._buffer).rpartition("\n")[2].strip(), FAINT)
            text.truncate(self._width(leaf), overflow="ellipsis")
        elif leaf.kind == "empty" and not fresh:
            text = Text(self._buffer)
        code = leaf.kind == "fence" and self._begun  # a long line of it is only added to
        if text is not None and (code or self._row.fits(Text(leaf.first) + text)):
            self._show(leaf, text)

    def _unfinished_code(self, leaf: Leaf) -> str:
        last = self._source.rpartition("\n")[2]
        if not last.strip():  # the parser leaves out spaces at the end
            return last[len(leaf.raw or "") :]
        return leaf.content.removesuffix("\n").rpartition("\n")[2]

    def _unfinished_text(self, leaf: Leaf, fresh: bool) -> Text | None:
        lines = leaf.content.split("\n")
        number = 1 if self._continued and len(lines[0]) <= self._continued else 0
        if leaf.raw is None or number >= len(lines):
            return None
        line = lines[number]
        if not fresh and number == len(lines) - 1:
            line = OPENING.sub("", self._unfinished_line(leaf, number) + self._buffer)
        text, _ = blocks.inline(line, provisional=True)
        return self._rows(leaf, text[self._continued if number == 0 else 0 :])[0]


def _cut(line: str, row: str, printed: int) -> str | None:
    """The rest of a line after its first row, preceded by the marks that are open there.

    row: the text of that row; printed: characters of the line that were printed before.
    """
    found = None
    for at in range(printed + len(row), len(line) + 1):
        text, marks = blocks.inline(line[:at], provisional=True)
        if text.plain[printed:].rstrip() == row:
            found = at, marks
        elif found:
            break
    if found is None:
        return None
    at, marks = found
    # Whether a mark opens or closes depends on the character before it.
    before = line[at - 1]
    stand_in = PRINTED if marks or not before.isalnum() else "x" if before.isascii() else before
    return stand_in + marks + line[at:]
