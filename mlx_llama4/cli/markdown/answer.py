"""Show an answer on the terminal piece by piece, as Markdown or as plain text."""

import sys
from collections.abc import Generator, Iterator

from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.console.progress import ReadingProgress


class Answer:
    """Shows an answer while it is generated, and before that the progress of reading the prompt."""

    def __init__(self, markdown: bool = False, literal: str = "") -> None:
        """markdown: render Markdown, unless the answer begins with a character in `literal`."""
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
        """Write the pieces as they come; close the iterator in any case."""
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
