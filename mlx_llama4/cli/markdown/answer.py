"""An answer on the terminal, piece by piece; as Markdown where that is wanted."""

import sys
from collections.abc import Generator, Iterator

from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.console.progress import ReadingProgress


class Answer:
    """Shows an answer as it comes and, while pictures and a long prompt are still read, how far
    that is.
    """

    def __init__(self, markdown: bool = False, literal: str = "") -> None:
        """markdown: show it as such, for terminals, unless it begins with one of the characters of
        `literal`.
        """
        self._last = ""
        self._progress = ReadingProgress()
        self.on_prefill = self._progress.update
        self.on_picture = self._progress.update_pictures
        self._literal = literal
        self._markdown = None
        if markdown:
            from rich.console import Console

            from mlx_llama4.cli.markdown.renderer import StreamingMarkdown

            self._markdown = StreamingMarkdown(Console())

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._progress.clear()
        if self._markdown is not None:
            self._markdown.finish()
        elif self._last and not self._last.endswith("\n"):
            terminal.line()

    def show(self, pieces: Iterator[str]) -> None:
        """Write the pieces as they come; however it ends, no more of them are asked for."""
        try:
            for piece in pieces:
                self.write(piece)
        finally:
            if isinstance(pieces, Generator):
                pieces.close()

    def write(self, piece: str) -> None:
        self._progress.clear()
        if self._literal and piece.strip():
            if piece.lstrip()[0] in self._literal:
                self._markdown = None
            self._literal = ""
        if self._markdown is not None:
            self._markdown.feed(piece)
            return
        self._last = piece
        sys.stdout.write(piece.translate(terminal.CONTROLS) if sys.stdout.isatty() else piece)
        sys.stdout.flush()
