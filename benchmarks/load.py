"""`python -m benchmarks load`: a model folder into memory, its files in the page cache.

In each round, just before an engine loads them, its files are also read plainly: into new memory
and nothing else.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine
from benchmarks.harness.measuring import Bench, measuring
from benchmarks.harness.page_cache import MEANING, PageCache, page_cache_of, prepare_page_cache
from benchmarks.harness.presets import Preset, check_preset, preset_folder, unpacked_dtype
from benchmarks.harness.process import PeakMemory
from benchmarks.harness.report import Metric, show_bytes, show_milliseconds, show_share
from benchmarks.harness.resident import start_resident
from benchmarks.harness.rounds import Figures, describe_rounds, run_rounds
from mlx_llama4.cli.console import terminal
from mlx_llama4.units import human_bytes

IMPORTS = {OURS: "mlx_llama4.opening", "mlx-lm": "mlx_lm.utils", "mlx-vlm": "mlx_vlm.utils"}


@terminal.reports_errors
def load(
    preset: options.PresetName = Preset.small,
    rounds: options.Rounds = 7,
    warm_up: options.WarmUp = False,
    only: options.Only = None,
    python: options.Python = None,
    prelude: options.Prelude = None,
    json: options.Json = None,
    png: options.Png = None,
) -> None:
    """Load a model: seconds until its weights are in memory, beside a plain read of its files.

    \b
    Example:
      python -m benchmarks load --rounds 15 --json load.json
    """
    check_preset(preset)
    with measuring(IMPORTS, only, python, prelude, json, png) as bench:
        _compare(bench, preset_folder(preset, bench.folder), rounds, warm_up)


def read_plainly(files: Sequence[Path]) -> float:
    """Seconds to read the bytes of all files into new memory."""
    start = time.perf_counter()
    held = []
    for file in files:
        with file.open("rb", buffering=0) as stream:
            memory = np.empty(file.stat().st_size, np.uint8)
            view = memory.data
            while view and (count := stream.readinto(view)):
                view = view[count:]
            held.append(memory)
    return time.perf_counter() - start


def _compare(bench: Bench, model: Path, rounds: int, warm_up: bool) -> None:
    files = sorted(model.glob("*.safetensors"))
    nbytes = sum(file.stat().st_size for file in files)
    state = page_cache_of(nbytes, cold=False)

    def run_once(engine: Engine) -> Figures:
        with start_resident(engine, "load", (model,), bench.folder) as process:
            held = process.memory().anonymous_bytes
            prepare_page_cache(files, state)
            plain = read_plainly(files)
            with PeakMemory(process.pid) as most:
                seconds, cpu_seconds, weights, peak = process.ask(None)
        return {
            "seconds": seconds,
            "plain_over_this": plain / seconds,
            "cpu_seconds": cpu_seconds,
            "weight_bytes": weights,
            "peak_bytes": peak,
            "process_bytes": most.anonymous_bytes - held,
            "peak_resident_bytes": most.resident_bytes,
        }

    runs = run_rounds(bench.engines, run_once, rounds, warm_up, terminal.note)
    setup = _setup(model.name, nbytes, state, describe_rounds(rounds, warm_up))
    bench.publish("load", setup, METRICS, runs)


def _setup(preset: str, nbytes: int, state: PageCache, rounds: str) -> dict[str, str]:
    return {
        "model": f"preset {preset}, 4 bits, {unpacked_dtype()} what is not packed, "
        f"{human_bytes(nbytes)}",
        "page cache": MEANING[state].replace("the source", "the model"),
        "seconds": "from the end of the imports to all weights in memory",
        "rounds": f"{rounds}; a fresh process for each, taking turns",
    }


METRICS = (
    Metric("seconds", "wall", show_milliseconds),
    Metric("plain_over_this", "a plain read / wall", show_share, compared=False),
    Metric("cpu_seconds", "CPU", show_milliseconds),
    Metric("weight_bytes", "weights in memory", show_bytes),
    Metric("peak_bytes", "peak memory, MLX's count", show_bytes),
    Metric("process_bytes", "peak anonymous above idle", show_bytes),
    Metric("peak_resident_bytes", "peak RSS", show_bytes),
)
