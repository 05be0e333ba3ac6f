"""`python -m benchmarks batch`: several prompts together, beside one after the other.

A fresh process loads a model and answers the same prompts both ways; the ways take turns at being
first. The process also checks whether each row's tokens are those of its own run.
"""

import json as json_module
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine
from benchmarks.harness.measuring import Bench, measuring
from benchmarks.harness.presets import (
    PLAIN_IDS,
    Preset,
    check_preset,
    preset_folder,
    unpacked_dtype,
)
from benchmarks.harness.process import run_measured
from benchmarks.harness.ratios import ratio_of_medians
from benchmarks.harness.report import Metric, show_bytes, show_ratio
from benchmarks.harness.rounds import Figures, Runs, describe_rounds, run_rounds
from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import RunError

# Tokens of prompt and answer. `tiny` has chunks of 256: one row crosses a border while it is
# decoded and one while its prompt is read.
TEXTS = ((3, 40), (40, 24), (90, 48), (20, 16), (250, 32), (290, 20))
# Pictures, each in a prompt of its own, and tokens of the answers.
PICTURES = (("star.png", 28), ("wide.png", 36))

IMPORTS = {
    OURS: "mlx_llama4.opening, mlx_llama4.generation.batch",
    "mlx-lm": "mlx_lm.utils, mlx_lm.generate",
    "mlx-vlm": "mlx_vlm.utils, mlx_vlm.generate",
}


@terminal.reports_errors
def batch(
    preset: options.PresetName = Preset.tiny,
    rounds: options.Rounds = 5,
    warm_up: options.WarmUp = False,
    only: options.Only = None,
    python: options.Python = None,
    prelude: options.Prelude = None,
    json: options.Json = None,
) -> None:
    """Prompts of several lengths answered together and one by one: tokens a second, peak memory.

    \b
    Example:
      python -m benchmarks batch --preset small --rounds 7 --json batch.json
    """
    check_preset(preset)
    with measuring(IMPORTS, only, python, prelude, json) as bench:
        _compare(bench, preset_folder(preset, bench.folder), rounds, warm_up)


def answer_both_ways(
    engine: Engine, model: Path, together_first: bool, folder: Path
) -> dict[str, Any]:
    """Run one process. Raises RunError if it fails, or if it is ours and cannot do both."""
    ids = np.random.default_rng(0).integers(0, PLAIN_IDS, sum(length for length, _ in TEXTS))
    left = ids.tolist()
    texts = [([left.pop() for _ in range(length)], count) for length, count in TEXTS]
    given = json_module.dumps((texts, PICTURES if engine.name == OURS else ()))
    found = run_measured(engine.run("batch", model, int(together_first), given), folder).result
    failures = [
        load["together"]["failure"] for load in found.values() if "failure" in load["together"]
    ]
    if failures and engine.name == OURS:
        raise RunError(failures[0])
    return found


def _compare(bench: Bench, model: Path, rounds: int, warm_up: bool) -> None:
    begun = dict.fromkeys(bench.engines, 0)
    unable: dict[str, str] = {}

    def run_once(engine: Engine) -> Figures:
        begun[engine] += 1
        found = answer_both_ways(engine, model, begun[engine] % 2 == 0, bench.folder)
        if "failure" in found["text"]["together"]:
            unable[engine.name] = found["text"]["together"]["failure"]
        return figures_of(found)

    runs = run_rounds(bench.engines, run_once, rounds, warm_up, terminal.note)
    setup = _setup(model.name, describe_rounds(rounds, warm_up)) | findings(runs, unable)
    bench.publish("batch: prompts together, beside one after the other", setup, METRICS, runs)


def figures_of(found: Mapping[str, Any]) -> Figures:
    """Figures of one process by load ("text", "pictures") and way; 0 for what it cannot do."""
    figures: dict[str, float] = {}
    for load, result in found.items():
        tokens, rows = sum(LOADS[load]), len(LOADS[load])
        figures[f"{load}_rows_right"] = result["rows_right"]
        for way in ("alone", "together"):
            took, name = result[way], f"{load}_{way}"
            able = "seconds" in took
            figures[f"{name}_tokens_a_second"] = tokens / took["seconds"] if able else 0.0
            figures[f"{name}_decode_tokens_a_second"] = (
                (tokens - rows) / took["decode_seconds"] if able else 0.0
            )
            # For MLX's CPU backend on a machine that is not quiet; in JSON alone.
            for key in ("cpu_seconds", "decode_cpu_seconds", "peak_bytes"):
                figures[f"{name}_{key}"] = took.get(key, 0.0)
    return figures


def findings(runs: Runs, unable: Mapping[str, str]) -> dict[str, str]:
    """What has no room in a table of medians, a line for each engine and load."""
    lines = {}
    for engine, rounds in runs.figures.items():
        loads = {"text": "", "pictures": ", with pictures"}
        for load in [load for load in loads if f"{load}_rows_right" in rounds[0]]:
            label = f"{engine}{loads[load]}"
            if engine in unable:
                lines[label] = f"cannot do it together: {unable[engine]}"
                continue
            gain = _gain(rounds, load, "tokens_a_second")
            # Where rows join, a prompt is read between the tokens of others.
            decode = _gain(rounds, load, "decode_tokens_a_second")
            of_decode = f", of decode alone {decode}" if load == "text" else ""
            right = min(each[f"{load}_rows_right"] for each in rounds)
            lines[label] = (
                f"tokens a second, together / one by one: {gain}{of_decode}; "
                f"{right:.0f} of {len(LOADS[load])} rows have the tokens of their own run"
            )
    return lines


def _gain(rounds: Sequence[Figures], load: str, rate: str) -> str:
    together, alone = (
        [figures[f"{load}_{way}_{rate}"] for figures in rounds] for way in ("together", "alone")
    )
    return show_ratio(ratio_of_medians(together, alone))


def _setup(preset: str, rounds: str) -> dict[str, str]:
    lengths = ", ".join(f"{length} + {count}" for length, count in TEXTS)
    return {
        "model": f"preset {preset}, 4 bits, {unpacked_dtype()}",
        "prompts": f"of text, and their answers: {lengths} tokens; all at once, greedy",
        "with pictures": f"ours alone: the same and {len(PICTURES)} with a picture each; half join "
        "at once, the others one a step",
        "tokens a second": "of all answers, prompts read within the time; decode alone: of "
        "all tokens but the first of each",
        "peak memory": "MLX's own count, above the weights",
        "rounds": f"{rounds}; a fresh process for each, both ways in it, taking turns",
    }


def _show_rate(rate: float) -> str:
    return f"{rate:.1f}" if rate else "–"


def _show_peak(count: float) -> str:
    return show_bytes(count) if count else "–"


LOADS = {
    "text": tuple(count for _, count in TEXTS),
    "pictures": tuple(count for _, count in (*TEXTS, *PICTURES)),
}
METRICS = (
    Metric("text_alone_tokens_a_second", "one by one, tokens a second", _show_rate),
    Metric("text_together_tokens_a_second", "together, tokens a second", _show_rate),
    Metric("text_alone_decode_tokens_a_second", "one by one, decode alone", _show_rate),
    Metric("text_together_decode_tokens_a_second", "together, decode alone", _show_rate),
    Metric("text_alone_peak_bytes", "one by one, peak memory", _show_peak),
    Metric("text_together_peak_bytes", "together, peak memory", _show_peak),
)
