"""`python -m benchmarks convert`: a Hugging Face checkpoint to MLX, quantized."""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine, Idle
from benchmarks.harness.measuring import Bench, measuring
from benchmarks.harness.page_cache import MEANING, page_cache_of, prepare_page_cache
from benchmarks.harness.process import SAMPLE_SECONDS, run_measured
from benchmarks.harness.process_memory import HOW_MEASURED
from benchmarks.harness.report import Metric, show_bytes, show_seconds
from benchmarks.harness.rounds import Figures, describe_rounds, run_rounds
from benchmarks.harness.source import SIZES, Preset, check_room, describe, write_source
from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import CheckpointError, InputError
from mlx_llama4.units import human_bytes

IMPORTS = {
    OURS: "mlx.nn, mlx_llama4.convert.run",
    "mlx-lm": "mlx_lm.convert",
    "mlx-vlm": "mlx_vlm.convert",
}
METRICS = (
    Metric("seconds", "wall", show_seconds),
    # Ours ends once everything is on the disk; the peers leave that to the system.
    Metric("on_disk_seconds", "wall, until on disk", show_seconds),
    Metric("cpu_seconds", "CPU", show_seconds),
    Metric("peak_resident_bytes", "peak RSS", show_bytes),
    Metric("anonymous_above_idle_bytes", "peak anonymous above idle", show_bytes),
    Metric("output_bytes", "output", show_bytes),
)


@dataclass(frozen=True)
class Settings:
    bits: int
    group_size: int
    cold: bool
    rounds: int
    warm_up: bool


@terminal.reports_errors
def convert(
    source: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A checkpoint to convert.", show_default=False),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(help="Make a random one for the run. Default: small.", show_default=False),
    ] = None,
    peers_too: Annotated[
        bool,
        typer.Option(
            "--peers-too", help="Run the peers even where they need the whole model in memory."
        ),
    ] = False,
    bits: Annotated[int, typer.Option(metavar="N", help="Bits of a weight: 4 or 8.")] = 4,
    group_size: Annotated[
        int, typer.Option("--group-size", metavar="N", help="Weights that share a scale.")
    ] = 64,
    cold: Annotated[
        bool,
        typer.Option(
            "--cold", help="Read the source from the disk, not from the page cache (Linux only)."
        ),
    ] = False,
    rounds: options.Rounds = 3,
    warm_up: options.WarmUp = False,
    only: options.Only = None,
    python: options.Python = None,
    prelude: options.Prelude = None,
    json: options.Json = None,
    png: options.Png = None,
) -> None:
    """Convert a checkpoint: seconds, memory, bytes written.

    \b
    Example:
      python -m benchmarks convert --preset vocabulary --rounds 5 --warm-up --png convert.png
    """
    if source is not None and preset is not None:
        raise InputError("--source and --preset exclude each other; give one")
    preset = preset or Preset.small
    if source is None and SIZES[preset].sparse and not peers_too and only is None:
        terminal.note(f"{preset} is converted by ours alone; --peers-too runs the peers as well")
        only = OURS
    settings = Settings(bits, group_size, cold, rounds, warm_up)
    with measuring(IMPORTS, only, python, prelude, json, png) as bench:
        what = describe(preset) if source is None else str(source)
        if source is None:
            with terminal.status(f"Writing {what}"):
                source = write_source(preset, bench.folder / "source")
        _compare(bench, source.absolute(), what, settings)


def _compare(bench: Bench, source: Path, what: str, settings: Settings) -> None:
    shards = sorted(source.glob("*.safetensors"))
    if not shards:
        raise CheckpointError(f"{source} has no *.safetensors; name a checkpoint's folder")
    source_bytes = sum(shard.stat().st_size for shard in shards)
    check_room(bench.folder, source_bytes, source_is_free=True)
    cache = page_cache_of(source_bytes, settings.cold)

    def run_once(engine: Engine) -> Figures:
        prepare_page_cache(shards, cache)
        with tempfile.TemporaryDirectory(dir=bench.folder) as run_folder:
            out = Path(run_folder) / "out"
            return _measure(_command(engine, source, out, settings), out, bench.idle[engine])

    files = "one file" if len(shards) == 1 else f"{len(shards)} files"
    rounds = describe_rounds(settings.rounds, settings.warm_up)
    setup = {
        "source": f"{what}, {human_bytes(source_bytes)} in {files}",
        "rounds": f"{rounds}; a fresh process each, taking turns",
        "page cache": MEANING[cache],
        "anonymous": f"{HOW_MEASURED}, every {SAMPLE_SECONDS * 1000:.0f} ms",
    }
    runs = run_rounds(bench.engines, run_once, settings.rounds, settings.warm_up, terminal.note)
    subject = f"convert to {settings.bits} bits in groups of {settings.group_size}"
    bench.publish(subject, setup, METRICS, runs)


def _command(engine: Engine, source: Path, out: Path, settings: Settings) -> list[str]:
    if engine.name == OURS:
        return engine.command(
            "from mlx_llama4.__main__ import run; run()",
            *("convert", source, out, "--bits", settings.bits),
            *("--group-size", settings.group_size),
        )
    return engine.command(
        f"from {IMPORTS[engine.name]} import main; main()",
        *("--hf-path", source, "--mlx-path", out),
        *("-q", "--q-bits", settings.bits, "--q-group-size", settings.group_size),
    )


def _measure(command: Sequence[str], out: Path, idle: Idle) -> Figures:
    usage = run_measured(command, out.parent)
    end = time.perf_counter()
    files = [path for path in out.rglob("*") if path.is_file()]
    for path in files:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    return {
        "seconds": usage.seconds,
        "on_disk_seconds": usage.seconds + time.perf_counter() - end,
        "cpu_seconds": usage.cpu_seconds,
        "peak_resident_bytes": usage.peak_resident_bytes,
        "anonymous_above_idle_bytes": usage.peak_anonymous_bytes - idle.memory.anonymous_bytes,
        "output_bytes": sum(path.stat().st_size for path in files),
    }
