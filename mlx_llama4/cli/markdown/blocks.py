"""Parse Markdown into blocks that hold text, and wrap those into rows of a terminal.

This is CommonMark with tables and strikethrough, except where that would mislead the reader of an
unfinished answer: each line of a paragraph stays a line, and marks open and close within a line;
HTML is text; `===` under a line makes no heading, `---` is always a rule; `[1]: https://…` stays
visible. Knows nothing of the terminal but the width of characters in cells.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Delimiter
from markdown_it.token import Token
from rich.cells import get_character_cell_size
from rich.text import Text

STYLES = {"strong": "bold", "em": "italic", "s": "strike"}
CODE, URL, FAINT = "cyan", "underline", "dim"

MOST_OPEN = 6  # `*` and `_`: more are hardly meant as emphasis
EMPHASIS = {ord("*"), ord("_")}
LINK_TEXT, LINK_URL = 200, 500  # characters of a link to wait for
OPEN_LINK = re.compile(
    rf"!?\[[^\[\]]{{0,{LINK_TEXT}}}$|!?\[[^\[\]]{{0,{LINK_TEXT}}}\](?:\([^()\s]{{0,{LINK_URL}}})?$"
)

# Marks that share the cell of the character before: accents, variants, tones, joined emoji.
MARKS = r"(?:[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u20d0-\u20f0\ufe00-\ufe0f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]|\u200d.)*"  # noqa: E501
# Scripts without spaces, and emoji: a row may end after each, but not before a closing mark.
WIDE = rf"(?:[\U0001f1e6-\U0001f1ff]{{2}}|[\u2e80-\uabff\uf900-\U0010ffff]){MARKS}"
WORD = re.compile(rf"{WIDE}[、。，．！？：；）」』】》〉”’]*\s*|(?:(?!{WIDE})\S)+\s*|\s+")
CHARACTER = re.compile(rf".{MARKS}", re.DOTALL)


@dataclass(eq=False)
class Container:
    """A quote or an item of a list."""

    line: int
    marker: str
    indent: str
    opening: str | None = None  # what precedes the text of its first line
    used: bool = False


@dataclass(eq=False)
class ListOf:
    """A list."""

    number: int | None  # of its current item; None for bullets

    def next_marker(self) -> str:
        """The bullet or number of the next item."""
        if self.number is None:
            return "• "
        self.number += 1
        return f"{self.number}. "


@dataclass
class Leaf:
    """A block that holds text and no other block.

    first, rest: what comes before its first row and before the others; line: where it begins;
    raw: what the source has before its text there, if that is known.
    """

    kind: str  # text, heading, fence, code, table, rule or empty
    path: tuple[Container | ListOf, ...]
    first: str
    rest: str
    line: int
    raw: str | None = None
    content: str = ""
    markup: str = ""
    info: str = ""
    closed: bool = False
    tokens: list[Token] = field(default_factory=list)

    @property
    def language(self) -> str:
        return self.info.strip().partition(" ")[0]

    def same_as(self, other: "Leaf") -> bool:
        """Whether both read the same, wherever they are in the source."""
        return (self.kind, self.first, self.rest, self.content, len(self.path)) == (
            other.kind, other.first, other.rest, other.content, len(other.path)
        )  # fmt: skip


def parse(source: str, numbers: dict[int, int], known: int) -> list[Leaf]:
    """numbers: what the items of the lists that hold the first `known` leaves are numbered from,
    by how deep the list is.
    """
    lines = source.split("\n")
    leaves: list[Leaf] = []
    path: list[Container | ListOf] = []
    tokens = iter(_blocks().parse(source))
    for token in tokens:
        if token.type in {"bullet_list_open", "ordered_list_open"}:
            number = int(token.attrs.get("start", 1)) if token.type[0] == "o" else None
            depth = sum(isinstance(part, ListOf) for part in path)
            if number is not None and len(leaves) < known:
                number = numbers.get(depth, number)
            path.append(ListOf(None if number is None else number - 1))
        elif token.type == "list_item_open":
            items = path[-1]
            marker = items.next_marker() if isinstance(items, ListOf) else "• "
            path.append(Container(_lines_of(token)[0], marker, " " * len(marker)))
        elif token.type == "blockquote_open":
            path.append(Container(_lines_of(token)[0], "│ ", "│ "))
        elif token.type in {"bullet_list_close", "ordered_list_close", "blockquote_close"}:
            path.pop()
        elif token.type == "list_item_close":
            item = path[-1]
            if isinstance(item, Container) and not item.used:
                leaves.append(_leaf("empty", path, item.line, lines, ""))
            path.pop()
        elif token.type in {"paragraph_open", "heading_open"}:
            inline = next(tokens)
            kind = "text" if token.type[0] == "p" else "heading"
            leaf = _leaf(kind, path, _lines_of(token)[0], lines, inline.content, token.tag)
            leaves.append(leaf)
        elif token.type in {"fence", "code_block"}:
            kind = "fence" if token.type == "fence" else "code"
            first, stop = _lines_of(token)
            leaf = _leaf(kind, path, first, lines, token.content, token.markup)
            leaf.info = token.info
            last = lines[min(stop, len(lines)) - 1].lstrip(" >").rstrip()
            ends = set(last) == {token.markup[:1]} and len(last) >= len(token.markup)
            leaf.closed = stop - 1 > first and ends
            leaves.append(leaf)
        elif token.type == "hr":
            leaves.append(_leaf("rule", path, _lines_of(token)[0], lines, ""))
        elif token.type == "table_open":
            leaf = _leaf("table", path, _lines_of(token)[0], lines, "")
            for part in tokens:
                if part.type == "table_close":
                    break
                leaf.tokens.append(part)
            leaves.append(leaf)
    return leaves


def _lines_of(token: Token) -> tuple[int, int]:
    """The first source line of a block, and the one after its last; every block token has both."""
    first, stop = token.map or (0, 0)
    return first, stop


def _leaf(
    kind: str, path: list, line: int, lines: list[str], content: str, markup: str = ""
) -> Leaf:
    containers = [part for part in path if isinstance(part, Container)]
    first = "".join(part.indent if part.used else part.marker for part in containers)
    source = lines[line]
    raw = None
    if kind in {"text", "heading"}:
        text = content.partition("\n")[0].rstrip()
        at = source.rstrip().rfind(text)
        raw = source[:at] if text and at >= 0 else None
    elif kind == "fence":
        raw = source[: source.find(markup)]
    elif kind == "empty":
        raw = source.rstrip() + " "
    else:
        raw = source[: len(source) - len(source.lstrip(" >"))]
    for part in containers:
        if not part.used:
            begun = lines[part.line].rstrip() + " "
            part.opening = raw if part.line == line else begun
            part.used = True
    rest = "".join(part.indent for part in containers)
    return Leaf(kind, tuple(path), first, rest, line, raw, content, markup)


@lru_cache(1)
def _blocks() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 100}).enable("table")
    parser.disable(["lheading", "reference", "html_block"])
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser


def _as_written(url: str) -> str:
    return url


@lru_cache(1)
def _inlines() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": 100}).enable("strikethrough")
    parser.normalizeLink = _as_written  # type: ignore[method-assign]  # meant to be replaced
    parser.inline.ruler2.after("balance_pairs", "close_open_marks", _close_open_marks)
    return parser


def _close_open_marks(state: StateInline) -> None:
    """Close emphasis that is still open at the end of the text."""
    marks = state.delimiters
    if "open" not in state.env:
        return
    still_open = [
        index
        for index, mark in enumerate(marks)
        if mark.marker in EMPHASIS and mark.open and mark.end < 0
        and not any(other.end > index for other in marks[:index])
        and (not mark.close or _after_wide(state, mark))
    ]  # fmt: skip
    if len(still_open) > MOST_OPEN:
        return
    state.env["open"] = "".join(chr(marks[index].marker) for index in still_open)
    for index in reversed(still_open):
        state.push("text", "", 0)
        mark = marks[index]
        marks.append(Delimiter(mark.marker, 0, len(state.tokens) - 1, -1, False, True))
        mark.end, mark.close = len(marks) - 1, False


def _after_wide(state: StateInline, mark: Delimiter) -> bool:
    """`5*3` opens nothing, but 这是**重点 does."""
    at = mark.token
    while at and state.tokens[at].content == chr(mark.marker):
        at -= 1
    return state.tokens[at].content[-1:] >= "\u2e80"


def inline(line: str, provisional: bool) -> tuple[Text, str]:
    """Style a line of a paragraph. Returns the text, and the marks still open at its end.

    provisional: treat what is open as emphasis or code; otherwise show open marks as typed.
    """
    env: dict[str, str] = {"open": ""} if provisional else {}
    code = _open_code(line) if provisional else ""
    children: list[Token] = []
    parser = _inlines()
    parser.inline.parse(line + code, parser, env, children)
    return _styled(children), env.get("open", "") + code


def _styled(children: list[Token]) -> Text:
    text = Text()
    styles: list[str] = []
    links: list[tuple[str, int]] = []
    for token in children:
        if token.type == "link_open":
            links.append((str(token.attrs["href"]), len(text)))
        elif token.type == "link_close":
            url, start = links.pop()
            _append_url(text, url, start)
        elif token.type == "image":
            start = len(text)
            text.append(token.content.replace("\t", " "), " ".join(styles))
            _append_url(text, str(token.attrs["src"]), start)
        elif token.nesting == 1:
            styles.append(STYLES[token.tag])
        elif token.nesting == -1:
            styles.remove(STYLES[token.tag])
        elif token.type in {"softbreak", "hardbreak"}:
            text.append(" ")
        else:
            style = [*styles, CODE] if token.type == "code_inline" else styles
            text.append(token.content.replace("\t", " "), " ".join(style))
    return text


def _append_url(text: Text, url: str, start: int) -> None:
    if text.plain[start:] in {url, url.removeprefix("mailto:")}:
        text.stylize(URL, start)
    elif url:
        text.append(" (").append(url, URL).append(")")


def _open_code(line: str) -> str:
    """The backticks that would close the code still open at the end of the line."""
    at = 0
    while run := re.compile(r"\\.|`+").search(line, at):
        at = run.end()
        if run[0][0] == "`" and at < len(line):
            close = re.compile(rf"(?<!`){run[0]}(?!`)").search(line, at)
            if close is None:
                return run[0]
            at = close.end()
    return ""


def settled(line: str) -> int:
    """How many characters of an unfinished line come before a link that is not complete yet."""
    link = OPEN_LINK.search(line, max(line.rfind("[") - 1, 0)) if "[" in line else None
    return link.start() if link else len(line)


def wrap(text: Text, width: int) -> list[Text]:
    """Wrap text into rows of at most `width` cells, between words if possible."""
    plain = text.plain
    if cells(plain) <= width:
        text.rstrip()
        return [text]
    breaks: list[int] = []
    used = 0
    for word in WORD.finditer(plain):
        wide = cells(word[0].rstrip())
        if used + wide > width and used:
            breaks.append(word.start())
            used = 0
        if wide > width:
            for character in CHARACTER.finditer(plain, word.start(), word.end()):
                more = 0 if character[0].isspace() else cells(character[0])
                if used + more > width and used:
                    breaks.append(character.start())
                    used = 0
                used += more
        else:
            used += cells(word[0])
    rows = list(text.divide(breaks))
    for row in rows:
        row.rstrip()
    return rows


def cells(text: str) -> int:
    """The most cells that any terminal gives the text; some do not know joined emoji."""
    if text.isascii():
        return len(text)
    return sum(map(_cells, text))


@lru_cache(4096)
def _cells(character: str) -> int:
    if character == "\ufe0f":  # makes the character before it an emoji
        return 1
    if "\U0001f1e6" <= character <= "\U0001f1ff" or "\U0001f3fb" <= character <= "\U0001f3ff":
        return 2
    return get_character_cell_size(character)
