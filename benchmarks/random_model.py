"""`python -m benchmarks random-model`: a model folder of any size with random weights."""

import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness.random_model import (
    packing_of,
    recipe_of,
    scaled_release,
    write_random_model,
)
from benchmarks.harness.random_tokenizer import LEAST_VOCABULARY
from mlx_llama4.cli.console import terminal
from mlx_llama4.planning.releases import RELEASES
from mlx_llama4.units import human_bytes


@terminal.reports_errors
def random_model(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    preset: Annotated[
        str, typer.Option(metavar="NAME", help=f"The release: {', '.join(RELEASES)}.")
    ] = RELEASES[0],
    scale: Annotated[
        int, typer.Option(metavar="N", help="Divide its widths by 1, 2, 4, 8 or 16.")
    ] = 1,
    layers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Layers. Default: its own.", show_default=False),
    ] = None,
    experts: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Experts in each MoE layer. Default: its own.",
            show_default=False,
        ),
    ] = None,
    vocabulary: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=LEAST_VOCABULARY,
            help=f"Tokens, {LEAST_VOCABULARY} or more. Default: its own.",
            show_default=False,
        ),
    ] = None,
    bits: Annotated[
        int, typer.Option(metavar="N", help="Bits of routed experts; 16: not packed.")
    ] = 4,
    rest_bits: Annotated[
        int | None,
        typer.Option(
            "--rest-bits",
            metavar="N",
            help="Bits of the other packed parts. Default: the same.",
            show_default=False,
        ),
    ] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="No vision tower.")] = False,
) -> None:
    """Write a model folder with random weights, packed; mlx-llama4 and its peers load it.

    \b
    Example:
      python -m benchmarks random-model scout-random --preset scout --bits 2
    """
    config = scaled_release(preset, scale, layers, experts, vocabulary, text_only)
    rest = bits if rest_bits is None else rest_bits
    recipe = recipe_of(packing_of(bits), packing_of(rest), "bfloat16")
    start = time.perf_counter()
    with terminal.status("Writing the model"):
        nbytes = write_random_model(out, config, recipe)
    seconds = time.perf_counter() - start
    speed = human_bytes(nbytes / seconds)
    terminal.line(f"{out}: {human_bytes(nbytes)} in {seconds:.0f} s ({speed} a second)")
