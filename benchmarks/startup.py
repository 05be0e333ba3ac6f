"""`python -m benchmarks startup`: from starting the command to the chat's first prompt.

On a terminal, as a user would: Python's start, imports, the model loaded, the prompt shown.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine, Idle, choose_engines
from benchmarks.harness.machine import this_machine
from benchmarks.harness.on_terminal import run_until_shown
from benchmarks.harness.presets import Preset, preset_config, preset_folder
from benchmarks.harness.process import ENVIRONMENT, run_measured
from benchmarks.harness.report import Metric, Report, show_bytes, show_seconds
from benchmarks.harness.rounds import Figures, run_rounds
from mlx_llama4.cli.console import terminal

MODULES = {OURS: "mlx_llama4", "mlx-lm": "mlx_lm", "mlx-vlm": "mlx_vlm"}
IMPORTS = {OURS: "mlx_llama4.chat.chat", "mlx-lm": "mlx_lm.chat", "mlx-vlm": "mlx_vlm.chat"}
# What each shows when it asks for the first message and not before; ours the line below it too.
PROMPTS = {OURS: "│ 0 of ", "mlx-lm": "›", "mlx-vlm": "You: "}
RUN = """\
import runpy, sys
module = sys.argv.pop(1)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@terminal.reports_errors
def startup(
    preset: options.PresetName = Preset.tiny,
    rounds: options.Rounds = 7,
    only: options.Only = None,
    python: options.Python = None,
    prelude: options.Prelude = None,
    json: options.Json = None,
    png: options.Png = None,
) -> None:
    """Start a chat: seconds to the first prompt, and to the end of `chat --help`.

    \b
    Example:
      python -m benchmarks startup --rounds 15 --json startup.json
    """
    outputs = options.Outputs(json, png)
    preset_config(preset)  # raises
    engines = choose_engines(only, python or (), prelude or ())
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-benchmark-") as temporary:
        folder = Path(temporary)
        idle = options.ready_engines(engines, IMPORTS, folder)
        with terminal.status("Writing the model"):
            model = preset_folder(preset, folder)
        report = _compare(model, idle, rounds, folder)
    outputs.publish(report)


def _compare(model: Path, idle: Mapping[Engine, Idle], rounds: int, folder: Path) -> Report:
    # What a chat keeps for the next one is not for the user who measures.
    environment = ENVIRONMENT | {
        name: str(folder / name) for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME")
    }

    def run_once(engine: Engine) -> Figures:
        chat = engine.command(RUN, MODULES[engine.name], "chat")
        shown = run_until_shown(
            [*chat, "--model", str(model)], PROMPTS[engine.name], folder, environment
        )
        help_text = run_measured([*chat, "--help"], folder)
        return {
            "seconds": shown.seconds,
            "cpu_seconds": shown.cpu_seconds,
            "help_seconds": help_text.seconds,
            "anonymous_bytes": shown.anonymous_bytes,
            "peak_resident_bytes": shown.peak_resident_bytes,
        }

    # A first round that does not count: after it, what they import is in the page cache.
    runs = run_rounds(list(idle), run_once, rounds, warm_up=True, on_turn=terminal.note)
    return Report(
        subject="startup",
        setup={
            "model": f"preset {model.name}",
            "first prompt": "from starting `chat --model FOLDER` on a terminal until it asks",
            "rounds": f"{rounds}, after a warm-up; a fresh process for each, taking turns",
        },
        machine=this_machine(),
        idle={engine.name: found for engine, found in idle.items()},
        metrics=METRICS,
        runs=runs,
    )


METRICS = (
    Metric("seconds", "first prompt", show_seconds),
    Metric("cpu_seconds", "  CPU", show_seconds),
    Metric("anonymous_bytes", "  anonymous memory then", show_bytes),
    Metric("peak_resident_bytes", "  peak RSS until then", show_bytes),
    Metric("help_seconds", "chat --help", show_seconds),
)
