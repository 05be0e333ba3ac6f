"""`python -m benchmarks decode`: tokens a second, one after the other, after a short prompt.

Each engine loads the model once and stays. They take turns at bursts of a few tokens of one long
answer, all at the same place in it: what slows the machine for a second slows all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine
from benchmarks.harness.limits import Limits, decode_bytes, measure_limits
from benchmarks.harness.measuring import Bench, measuring
from benchmarks.harness.presets import (
    PLAIN_IDS,
    Preset,
    check_preset,
    preset_folder,
    unpacked_dtype,
)
from benchmarks.harness.report import Metric, show_bytes, show_milliseconds, show_share
from benchmarks.harness.resident import Residents
from benchmarks.harness.rounds import Figures, Runs, run_rounds
from mlx_llama4.cli.console import terminal
from mlx_llama4.config import load_config
from mlx_llama4.units import human_bytes

PROMPT_TOKENS = 64
IMPORTS = {
    OURS: "mlx_llama4.opening, mlx_llama4.generation.generate",
    "mlx-lm": "mlx_lm.utils, mlx_lm.generate",
    "mlx-vlm": "mlx_vlm.utils, mlx_vlm.generate",
}


@dataclass(frozen=True)
class Settings:
    """What the options say."""

    preset: str
    prompt: int  # tokens
    burst: int  # tokens of a turn
    rounds: int  # turns of each engine

    @property
    def tokens(self) -> int:
        """Of the answer, the round that does not count included."""
        return self.burst * (self.rounds + 1)


@terminal.reports_errors
def decode(
    preset: options.PresetName = Preset.small,
    prompt: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens before the answer.")
    ] = PROMPT_TOKENS,
    burst: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of a turn.")] = 16,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Turns of each engine.")] = 30,
    only: options.Only = None,
    python: options.Python = None,
    prelude: options.Prelude = None,
    json: options.Json = None,
    png: options.Png = None,
) -> None:
    """Generate token by token: tokens a second, beside what memory allows.

    \b
    Example:
      python -m benchmarks decode --rounds 60 --json decode.json
    """
    check_preset(preset)
    settings = Settings(preset, prompt, burst, rounds)
    with measuring(IMPORTS, only, python, prelude, json, png) as bench:
        model = preset_folder(preset, bench.folder)
        with terminal.status("Measuring the limits"):
            limits = measure_limits(load_config(model).text)
        _compare(bench, model, limits, settings)


def _compare(bench: Bench, model: Path, limits: Limits, settings: Settings) -> None:
    # In the middle of the answer.
    nbytes = decode_bytes(model, settings.prompt + settings.tokens // 2)
    tokens: dict[str, list[int]] = {}
    arguments = (model, settings.prompt, settings.tokens, PLAIN_IDS)
    with Residents("decode", arguments, bench.folder) as residents, terminal.status("Decoding"):

        def run_once(engine: Engine) -> Figures:
            process = residents.of(engine)
            seconds, cpu_seconds, weights, peak, found = process.ask(settings.burst)
            tokens.setdefault(engine.name, []).extend(found)
            speed = settings.burst / seconds
            return {
                "tokens_per_second": speed,
                "share_of_memory": speed * nbytes / limits.bytes_per_second,
                "share_of_one_row": speed * nbytes / limits.packed_vector,
                "cpu_seconds_a_token": cpu_seconds / settings.burst,
                "weight_bytes": weights,
                "peak_bytes": peak,
                "peak_resident_bytes": process.memory().peak_resident_bytes,
            }

        # The prompt is read in the first round, which does not count.
        runs = run_rounds(bench.engines, run_once, settings.rounds, warm_up=True)
    setup = _setup(settings, nbytes, limits, same_tokens(tokens, runs))
    bench.publish("decode", setup, METRICS, runs)


def same_tokens(tokens: Mapping[str, list[int]], runs: Runs) -> str:
    """For how many tokens each peer's answer agrees with ours."""
    if OURS not in tokens:
        return "ours not asked"
    texts = []
    for name in runs.figures:
        if name == OURS:
            continue
        ours, theirs = tokens[OURS], tokens[name]
        same = next((at for at in range(len(ours)) if ours[at] != theirs[at]), len(ours))
        texts.append(f"{name} {same:,} of {len(ours):,}")
    return "the same as ours, greedily: " + (", ".join(texts) or "no peer ran")


def _setup(settings: Settings, nbytes: int, limits: Limits, same: str) -> dict[str, str]:
    memory, row = limits.bytes_per_second / nbytes, limits.packed_vector / nbytes
    return {
        "model": f"preset {settings.preset}, 4 bits, {unpacked_dtype()} what is not packed",
        "prompt": f"{settings.prompt:,} tokens, an answer of {settings.tokens:,}",
        "a token reads": f"{human_bytes(nbytes)}, keys and values included",
        **limits.lines(),
        "so at most": f"{memory:,.1f} tokens/s by memory, {row:,.1f} by MLX's product with one row",
        "tokens": same,
        "rounds": f"{settings.rounds} bursts of {settings.burst} tokens, taking turns; each engine "
        "loaded once",
    }


METRICS = (
    Metric("tokens_per_second", "tokens/s", lambda speed: f"{speed:.2f}"),
    Metric("share_of_memory", "of the memory limit", show_share, compared=False),
    Metric("share_of_one_row", "of the one-row limit", show_share, compared=False),
    Metric("cpu_seconds_a_token", "CPU a token", show_milliseconds),
    Metric("weight_bytes", "weights in memory", show_bytes),
    Metric("peak_bytes", "peak memory above them", show_bytes),
    Metric("peak_resident_bytes", "peak RSS", show_bytes),
)
