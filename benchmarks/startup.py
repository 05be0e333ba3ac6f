"""`python -m benchmarks startup`: from starting the command to the chat's first prompt.

On a terminal, as a user would: Python's start, imports, the model loaded, the prompt shown.
"""

from pathlib import Path

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine
from benchmarks.harness.measuring import Bench, measuring
from benchmarks.harness.on_terminal import run_until_shown
from benchmarks.harness.presets import Preset, check_preset, preset_folder
from benchmarks.harness.process import ENVIRONMENT, run_measured
from benchmarks.harness.report import Metric, show_bytes, show_seconds
from benchmarks.harness.rounds import Figures, describe_rounds, run_rounds
from mlx_llama4.cli.console import terminal

IMPORTS = {OURS: "mlx_llama4.chat.chat", "mlx-lm": "mlx_lm.chat", "mlx-vlm": "mlx_vlm.chat"}
# What each shows only when it asks for the first message; ours shows the line below it as well.
PROMPTS = {OURS: "│ 0 of ", "mlx-lm": "›", "mlx-vlm": "You: "}


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
    check_preset(preset)
    with measuring(IMPORTS, only, python, prelude, json, png) as bench:
        _compare(bench, preset_folder(preset, bench.folder), rounds)


def _compare(bench: Bench, model: Path, rounds: int) -> None:
    # What a chat keeps for the next one must not reach the user who measures.
    environment = ENVIRONMENT | {
        name: str(bench.folder / name) for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME")
    }

    def run_once(engine: Engine) -> Figures:
        chat = engine.run("startup", "chat")
        shown = run_until_shown(
            [*chat, "--model", str(model)], PROMPTS[engine.name], bench.folder, environment
        )
        help_text = run_measured([*chat, "--help"], bench.folder)
        return {
            "seconds": shown.seconds,
            "cpu_seconds": shown.cpu_seconds,
            "help_seconds": help_text.seconds,
            "anonymous_bytes": shown.anonymous_bytes,
            "peak_resident_bytes": shown.peak_resident_bytes,
        }

    # The warm-up leaves what engines import in the page cache.
    runs = run_rounds(bench.engines, run_once, rounds, warm_up=True, on_turn=terminal.note)
    setup = {
        "model": f"preset {model.name}",
        "first prompt": "from starting `chat --model FOLDER` on a terminal until it asks",
        "rounds": f"{describe_rounds(rounds, True)}; a fresh process for each, taking turns",
    }
    bench.publish("startup", setup, METRICS, runs)


METRICS = (
    Metric("seconds", "first prompt", show_seconds),
    Metric("cpu_seconds", "  CPU", show_seconds),
    Metric("anonymous_bytes", "  anonymous memory then", show_bytes),
    Metric("peak_resident_bytes", "  peak RSS until then", show_bytes),
    Metric("help_seconds", "chat --help", show_seconds),
)
