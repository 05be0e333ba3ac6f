"""The row of the terminal that is being written, the only one that may be overwritten."""

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType, Segment, Segments
from rich.style import Style
from rich.text import Text

from mlx_llama4.cli.markdown.blocks import cells

Cell = tuple[str, Style | None]  # a character and its style
OVER = Control(ControlType.CARRIAGE_RETURN).segment
ERASE = Control((ControlType.ERASE_IN_LINE, 0)).segment


class Row:
    """shown: whether anything is on it."""

    def __init__(self, console: Console):
        self._console = console
        self._shown: list[Cell] = []
        self._width = self.width = console.width - 1
        self.live = console.is_terminal and not console.is_dumb_terminal
        self.shown = False

    def show(self, text: Text) -> None:
        """Make the row read `text`, writing as little as possible.

        Text that went over the right edge, or was there when the window changed, cannot be
        overwritten. Then the row is added to, or keeps some surplus characters; if neither is
        enough, the text starts again in the next row.
        """
        segments = list(text.render(self._console))
        new = [(character, part.style) for part in segments for character in part.text]
        old = self._shown
        if new[: len(old)] == old:
            self._write(_segments(new[len(old) :]))
        elif self._fits(old) and self._console.width - 1 == self._width:
            over = [OVER, *_segments(new), ERASE] if self._fits(new) else None
            self._write(over or [OVER, ERASE, *_segments(new)])
        elif _plain(new).startswith(_plain(old)):
            self._write(_segments(new[len(old) :]))
        elif not _plain(old).startswith(_plain(new)):
            self._write([Segment("\n"), *_segments(new)])
        self._shown, self.shown = new, True

    def end(self) -> None:
        """Go to the next row unless this one is empty."""
        if self.shown:
            self._write([Segment("\n")])
            self._shown, self.shown = [], False
        self._width = self.width = self._console.width - 1

    def fits(self, text: Text) -> bool:
        return cells(text.plain) <= self._width

    def _fits(self, row: list[Cell]) -> bool:
        return cells(_plain(row)) <= self._width

    def _write(self, segments: list[Segment]) -> None:
        if segments:
            self._console.print(Segments(segments), end="", soft_wrap=True)


def _plain(row: list[Cell]) -> str:
    return "".join(character for character, _ in row)


def _segments(row: list[Cell]) -> list[Segment]:
    return list(Segment.simplify(Segment(character, style) for character, style in row))
