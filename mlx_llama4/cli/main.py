"""The `mlx-llama4` command: registers its subcommands and nothing else.

Heavy packages (MLX, tokenizers, Pillow, rich) are imported by the subcommands that need them.
"""

from typing import Annotated

import typer

from mlx_llama4 import __version__
from mlx_llama4.cli.ask import ask
from mlx_llama4.cli.cache import cache
from mlx_llama4.cli.chat import chat
from mlx_llama4.cli.compare import compare
from mlx_llama4.cli.console.usage import OneLineGroup
from mlx_llama4.cli.convert import convert
from mlx_llama4.cli.demo import demo
from mlx_llama4.cli.doctor import doctor
from mlx_llama4.cli.inspect import inspect
from mlx_llama4.cli.models import models
from mlx_llama4.cli.plan import plan

START_HERE = """\b
Start here:
  mlx-llama4 plan                     which model suits this Mac
  mlx-llama4 chat --model scout       download it ready-made, and talk with it
  mlx-llama4 demo -o demo-8bit        or try a tiny one, without a download
  mlx-llama4 chat --model demo-8bit
"""

app = typer.Typer(
    name="mlx-llama4",
    cls=OneLineGroup,
    epilog=START_HERE,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (chat, ask, convert, models, plan, inspect, cache, compare, demo, doctor):
    # `ask` explains surplus arguments itself.
    app.command(context_settings={"allow_extra_args": command is ask})(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Run Llama 4 on your own Mac: convert a checkpoint, chat with it, ask about images."""
