"""`python -m benchmarks load`: a model folder into memory, its files in the page cache.

Beside each engine, in the same round, its files are read plainly: into new memory, nothing else.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine, Idle, choose_engines
from benchmarks.harness.machine import this_machine
from benchmarks.harness.page_cache import MEANING, PageCache, page_cache_of, prepare_page_cache
from benchmarks.harness.presets import Preset, preset_config, preset_folder, unpacked_dtype
from benchmarks.harness.process import PeakMemory
from benchmarks.harness.report import Metric, Report, show_bytes, show_milliseconds, show_share
from benchmarks.harness.resident import Resident
from benchmarks.harness.rounds import Figures, run_rounds
from mlx_llama4.cli.console import terminal
from mlx_llama4.units import human_bytes

# Each engine's own way from a folder to weights that are in memory; imports come before.
WAYS = {
    OURS: "from mlx_llama4.opening import load_model",
    "mlx-lm": "from mlx_lm.utils import load_model",
    "mlx-vlm": "from mlx_vlm.utils import load_model",
}
IMPORTS = {OURS: "mlx_llama4.opening", "mlx-lm": "mlx_lm.utils", "mlx-vlm": "mlx_vlm.utils"}
MEASURE = """\
import sys, time
from pathlib import Path
import mlx.core as mx
%s
def answer(question):
    global model
    start, cpu_start = time.perf_counter(), time.process_time()
    model = load_model(Path(sys.argv[1]))
    # mlx-lm's is a pair; nothing is left to evaluate, unless an engine put it off.
    mx.eval((model[0] if isinstance(model, tuple) else model).parameters())
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return [seconds, cpu_seconds, mx.get_active_memory(), mx.get_peak_memory()]
"""


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
    outputs = options.Outputs(json, png)
    preset_config(preset)  # raises
    engines = choose_engines(only, python or (), prelude or ())
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-benchmark-") as temporary:
        folder = Path(temporary)
        idle = options.ready_engines(engines, IMPORTS, folder)
        with terminal.status("Writing the model"):
            model = preset_folder(preset, folder)
        report = _compare(model, idle, rounds, warm_up, folder)
    outputs.publish(report)


def read_plainly(files: Sequence[Path]) -> float:
    """Seconds to have the bytes of all files in new memory."""
    start = time.perf_counter()
    held = []
    for file in files:
        with file.open("rb", buffering=0) as stream:
            memory = np.empty(file.stat().st_size, np.uint8)
            view = memoryview(memory)
            while view and (count := stream.readinto(view)):
                view = view[count:]
            held.append(memory)
    return time.perf_counter() - start


def _compare(
    model: Path, idle: Mapping[Engine, Idle], rounds: int, warm_up: bool, folder: Path
) -> Report:
    files = sorted(model.glob("*.safetensors"))
    nbytes = sum(file.stat().st_size for file in files)
    state = page_cache_of(nbytes, cold=False)

    def run_once(engine: Engine) -> Figures:
        with Resident(engine, MEASURE % WAYS[engine.name], (model,), folder) as process:
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

    runs = run_rounds(list(idle), run_once, rounds, warm_up, terminal.note)
    return Report(
        subject="load",
        setup=_setup(model.name, nbytes, state, rounds, warm_up),
        machine=this_machine(),
        idle={engine.name: found for engine, found in idle.items()},
        metrics=METRICS,
        runs=runs,
    )


def _setup(
    preset: str, nbytes: int, state: PageCache, rounds: int, warm_up: bool
) -> dict[str, str]:
    first = "after a warm-up" if warm_up else "no warm-up"
    return {
        "model": f"preset {preset}, 4 bits, {unpacked_dtype()} what is not packed, "
        f"{human_bytes(nbytes)}",
        "page cache": MEANING[state].replace("the source", "the model"),
        "seconds": "from the end of the imports to all weights in memory",
        "rounds": f"{rounds}, {first}; a fresh process for each, taking turns",
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
