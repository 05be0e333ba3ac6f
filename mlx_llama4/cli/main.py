"""The `mlx-llama4` command: registers its subcommands and nothing else.

Whatever is heavy (MLX, tokenizers, Pillow, rich) is imported by the subcommand that needs it.
"""

import typer

from mlx_llama4.cli.ask import ask
from mlx_llama4.cli.chat import chat
from mlx_llama4.cli.convert import convert
from mlx_llama4.cli.demo import demo
from mlx_llama4.cli.inspect import inspect

app = typer.Typer(
    name="mlx-llama4",
    help="Run Llama 4 on your own Mac: convert a checkpoint, chat with it, ask about images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (convert, ask, chat, inspect, demo):
    app.command()(command)


def run() -> None:
    app()
