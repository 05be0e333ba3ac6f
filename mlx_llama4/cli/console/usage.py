"""Wrong options in the style of all other errors: one line, exit code 2."""

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import typer
from typer.core import TyperGroup

from mlx_llama4.cli.console import terminal

# The base of what typer's parser raises, which has no public name.
UsageError = cast(type[typer.BadParameter], typer.BadParameter.__base__)
SHOWS_HELP = "NoArgsIsHelpError"


class OneLineGroup(TyperGroup):
    """A group of commands whose parser says in one line what it cannot take."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _in_one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _in_one_line():
            return super().invoke(ctx)


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except UsageError as failure:
        if type(failure).__name__ == SHOWS_HELP:
            raise
        context = getattr(failure, "ctx", None)
        command = context.command_path if context is not None else "mlx-llama4"
        said = " ".join(failure.format_message().split()).rstrip(".")
        terminal.note(f"error: {said[:1].lower()}{said[1:]}; see: {command} -h")
        raise typer.Exit(2) from None
