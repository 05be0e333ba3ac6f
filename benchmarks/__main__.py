"""`python -m benchmarks`: registers its subjects."""

import signal
import sys

import typer

from benchmarks.batch import batch
from benchmarks.convert import convert
from benchmarks.decode import decode
from benchmarks.drafting import drafting
from benchmarks.eviction.command import eviction
from benchmarks.limits import limits
from benchmarks.load import load
from benchmarks.macs import macs
from benchmarks.needle.command import needle
from benchmarks.positions import positions
from benchmarks.prefill import prefill
from benchmarks.quality import quality
from benchmarks.random_model import random_model
from benchmarks.reuse import reuse
from benchmarks.schemas import schemas
from benchmarks.startup import startup
from benchmarks.streaming.command import streaming
from benchmarks.turns import turns
from benchmarks.vision import vision

app = typer.Typer(
    name="python -m benchmarks",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for subject in (
    *(limits, startup, load, decode, vision, drafting),
    *(convert, quality, prefill, reuse, positions, needle),
    *(batch, turns, streaming, eviction, macs, random_model, schemas),
):
    app.command()(subject)


@app.callback()
def main() -> None:
    """Measure mlx-llama4 beside mlx-lm and mlx-vlm."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Stop engines and delete temporary folders, as after Ctrl-C.
        signal.signal(number, lambda number, frame: sys.exit(128 + number))


if __name__ == "__main__":
    app()
