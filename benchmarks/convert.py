"""`python -m benchmarks convert`: a Hugging Face checkpoint to MLX, quantized."""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import options
from benchmarks.engines import OURS, Engine, Idle, choose_engines
from benchmarks.machine import this_machine
from benchmarks.page_cache import MEANING, PageCache, page_cache_of, prepare_page_cache
from benchmarks.process import SAMPLE_SECONDS, run_measured
from benchmarks.process_memory import HOW_MEASURED
from benchmarks.report import Metric, Report, show_bytes, show_seconds
from benchmarks.rounds import Figures, run_rounds
from benchmarks.source import SIZES, Preset, check_room, describe, write_source
from mlx_llama4.cli import terminal
from mlx_llama4.errors import CheckpointError, InputError
from mlx_llama4.memory import human_bytes

IMPORTS = {
    OURS: "mlx.nn, mlx_llama4.convert.stream",
    "mlx-lm": "mlx_lm.convert",
    "mlx-vlm": "mlx_vlm.convert",
}
METRICS = (
    Metric("seconds", "wall", show_seconds),
    # Ours ends when everything is on the disk; the peers leave that to the system.
    Metric("on_disk_seconds", "wall, until on disk", show_seconds),
    Metric("cpu_seconds", "CPU", show_seconds),
    Metric("peak_resident_bytes", "peak RSS", show_bytes),
    Metric("anonymous_above_idle_bytes", "peak anonymous above idle", show_bytes),
    Metric("output_bytes", "output", show_bytes),
)


@terminal.reports_errors
def convert(
    source: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A checkpoint to convert.", show_default=False),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(help="A random one, made for the run. Default: small.", show_default=False),
    ] = None,
    peers_too: Annotated[
        bool,
        typer.Option("--peers-too", help="Also where they need the whole model in memory."),
    ] = False,
    bits: Annotated[int, typer.Option(metavar="N", help="4 or 8.")] = 4,
    group_size: Annotated[
        int, typer.Option("--group-size", metavar="N", help="Weights that share a scale.")
    ] = 64,
    cold: Annotated[
        bool, typer.Option("--cold", help="The source comes from the disk (Linux only).")
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
    outputs = options.Outputs(json, png)
    if source is not None and preset is not None:
        raise InputError("--source and --preset exclude each other; give one")
    preset = preset or Preset.small
    if source is None and SIZES[preset].sparse and not peers_too and only is None:
        terminal.note(f"{preset} is converted by ours alone; --peers-too runs the peers as well")
        only = OURS
    engines = choose_engines(only, python or (), prelude or ())
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-benchmark-") as temporary:
        folder = Path(temporary)
        idle = options.ready_engines(engines, IMPORTS, folder)
        what = str(source) if source else describe(preset)
        if source is None:
            with terminal.status(f"Writing {what}"):
                source = write_source(preset, folder / "source")
        shards = _shards(source)
        source_bytes = sum(shard.stat().st_size for shard in shards)
        check_room(folder, source_bytes, source_is_free=True)
        cache = page_cache_of(source_bytes, cold)

        def run_once(engine: Engine) -> Figures:
            prepare_page_cache(shards, cache)
            with tempfile.TemporaryDirectory(dir=folder) as run_folder:
                out = Path(run_folder) / "out"
                command = _command(engine, source.absolute(), out, bits, group_size)
                return _measure(command, out, idle[engine])

        runs = run_rounds(list(idle), run_once, rounds, warm_up, terminal.note)
    report = Report(
        subject=f"convert to {bits} bits in groups of {group_size}",
        setup={
            "source": f"{what}; {human_bytes(source_bytes)} in {_files(len(shards))}",
            **_setup(rounds, warm_up, cache),
        },
        machine=this_machine(),
        idle={engine.name: found for engine, found in idle.items()},
        metrics=METRICS,
        runs=runs,
    )
    outputs.publish(report)


def _command(engine: Engine, source: Path, out: Path, bits: int, group_size: int) -> list[str]:
    if engine.name == OURS:
        return engine.command(
            "from mlx_llama4.__main__ import run; run()",
            *("convert", source, out, "--bits", bits, "--group-size", group_size),
        )
    return engine.command(
        f"from {IMPORTS[engine.name]} import main; main()",
        *("--hf-path", source, "--mlx-path", out),
        *("-q", "--q-bits", bits, "--q-group-size", group_size),
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


def _shards(source: Path) -> list[Path]:
    shards = sorted(source.glob("*.safetensors"))
    if not shards:
        raise CheckpointError(f"{source} has no *.safetensors; name a checkpoint's folder")
    return shards


def _files(count: int) -> str:
    return "one file" if count == 1 else f"{count} files"


def _setup(rounds: int, warm_up: bool, cache: PageCache) -> dict[str, str]:
    first = "after a warm-up" if warm_up else "no warm-up"
    return {
        "rounds": f"{rounds}, {first}; a fresh process each, taking turns",
        "page cache": MEANING[cache],
        "anonymous": f"{HOW_MEASURED}, every {SAMPLE_SECONDS * 1000:.0f} ms",
    }
