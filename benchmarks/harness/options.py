"""The options that subjects share."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness.presets import Preset

PresetName = Annotated[
    str, typer.Option("--preset", metavar="NAME", help=f"The model: {', '.join(Preset)}.")
]
Rounds = Annotated[int, typer.Option(metavar="N", min=1, help="Runs of each engine.")]
WarmUp = Annotated[bool, typer.Option("--warm-up", help="Run a first round that does not count.")]
Scale = Annotated[
    int, typer.Option(metavar="N", help="Divide the releases' sizes by 1, 2, 4 … 64.")
]
Only = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="The engines to run, of ours,mlx-lm,mlx-vlm. Default: all that can.",
        show_default=False,
    ),
]
Python = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=PATH",
        help="The Python that runs an engine; repeatable. Default: this one.",
        show_default=False,
    ),
]
Prelude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=CODE",
        help="Python that an engine's processes run first; repeatable.",
        show_default=False,
    ),
]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write all figures as JSON.")
]
Png = Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Also draw a chart.")]
