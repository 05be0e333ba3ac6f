"""Options that all subjects share, and what they make of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness.chart import check_chart, write_chart
from benchmarks.harness.engines import OURS, Engine, Idle, measure_idle
from benchmarks.harness.presets import Preset
from benchmarks.harness.report import Report, print_report, write_json
from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import OutputError, RunError

PresetName = Annotated[
    str, typer.Option("--preset", metavar="NAME", help=f"Of {', '.join(Preset)}.")
]
Rounds = Annotated[int, typer.Option(metavar="N", min=1, help="Runs of each engine.")]
WarmUp = Annotated[bool, typer.Option("--warm-up", help="A round first that does not count.")]
Only = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Of ours,mlx-lm,mlx-vlm.", show_default=False),
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
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures too.")]
Png = Annotated[Path | None, typer.Option("--png", metavar="FILE", help="Draw a chart too.")]


@dataclass(frozen=True)
class Outputs:
    """Where a report goes beside the terminal. Raises InputError if it could not be written."""

    json: Path | None
    png: Path | None

    def __post_init__(self) -> None:
        for path in filter(None, (self.json, self.png)):
            if not path.absolute().parent.is_dir():
                raise OutputError(f"{path.parent} is not a folder; create it first")
            if path.is_dir():
                raise OutputError(f"{path} is a folder; name a file")
        if self.png is not None:
            check_chart()

    def publish(self, report: Report) -> None:
        print_report(report)
        if self.json is not None:
            write_json(report, self.json)
        if self.png is not None:
            write_chart(report, self.png)


def ready_engines(
    engines: Sequence[Engine], imports: Mapping[str, str], folder: Path
) -> dict[Engine, Idle]:
    """The engines that can run here, and their idle processes; says which peers cannot.

    imports: engine's name → modules with commas between. Raises RunError if ours cannot.
    """
    ready = {}
    for engine in engines:
        try:
            ready[engine] = measure_idle(engine, imports[engine.name], folder)
        except RunError as failure:
            if engine.name == OURS:
                raise RunError(f"{OURS}: {failure}") from None
            terminal.note(
                f"{engine.name} is left out ({failure}); --python {engine.name}=PATH "
                "names another Python"
            )
    if not ready:
        raise RunError("no engine is left to run")
    return ready
