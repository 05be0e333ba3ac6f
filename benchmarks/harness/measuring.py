"""The frame of every subject that compares engines: what comes before it and what comes after."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.engines import OURS, Engine, Idle, choose_engines, measure_idle
from benchmarks.harness.files import temporary_folder
from benchmarks.harness.machine import this_machine
from benchmarks.harness.outputs import Outputs
from benchmarks.harness.report import Metric, Report
from benchmarks.harness.rounds import Runs
from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import InputError, RunError


@dataclass(frozen=True)
class Bench:
    """What a subject works with."""

    folder: Path  # temporary: models, and whatever a run writes
    idle: Mapping[Engine, Idle]  # the engines that can run here, ours first
    outputs: Outputs

    @property
    def engines(self) -> list[Engine]:
        return list(self.idle)

    def publish(
        self, subject: str, setup: Mapping[str, str], metrics: Sequence[Metric], runs: Runs
    ) -> None:
        """Print and write the report of these runs."""
        report = Report(
            subject=subject,
            setup=setup,
            machine=this_machine(),
            idle={engine.name: idle for engine, idle in self.idle.items()},
            metrics=metrics,
            runs=runs,
        )
        self.outputs.publish(report)


@contextmanager
def measuring(
    imports: Mapping[str, str],
    only: str | None,
    python: Sequence[str] | None,
    prelude: Sequence[str] | None,
    json: Path | None,
    png: Path | None = None,
    *,
    others: str = "it is not measured here",
) -> Iterator[Bench]:
    """Check the shared options, then start each engine once to see whether it can run here.

    imports: name of each engine that can be measured → modules it needs, with commas between.
    others: the error for any other engine. Raises InputError or OutputError for bad options,
    RunError if ours cannot run.
    """
    outputs = Outputs(json, png)
    engines = choose_engines(only or ",".join(imports), python or (), prelude or ())
    for engine in engines:
        if engine.name not in imports:
            raise InputError(f"--only {engine.name}: {others}")
    with temporary_folder() as folder:
        yield Bench(folder, _ready_engines(engines, imports, folder), outputs)


def _ready_engines(
    engines: Sequence[Engine], imports: Mapping[str, str], folder: Path
) -> dict[Engine, Idle]:
    """The engines that can run here and their idle processes. Notes which peers cannot."""
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
