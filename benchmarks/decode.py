"""`python -m benchmarks decode`: tokens a second, one after the other, behind a short prompt.

Each engine loads the model once and stays. They take turns at bursts of a few tokens of one long
answer, all at the same place in it: what slows the machine for a second slows all of them.
"""

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine, Idle, choose_engines
from benchmarks.harness.machine import this_machine
from benchmarks.harness.presets import Preset, preset_config, preset_folder, unpacked_dtype
from benchmarks.harness.report import Metric, Report, show_bytes, show_milliseconds, show_share
from benchmarks.harness.resident import Resident
from benchmarks.harness.rounds import Figures, Runs, run_rounds
from benchmarks.limits import Limits, decode_bytes, measure_limits
from mlx_llama4.cli.console import terminal
from mlx_llama4.config import load_config
from mlx_llama4.units import human_bytes

PROMPT_TOKENS = 64
IDS = 1000  # ids below are plain text in every preset

# Each engine's own way from ids to tokens, greedily; ours makes text of them too.
WAYS = {
    OURS: """
from mlx_llama4.generation.generate import generate
from mlx_llama4.opening import load
from mlx_llama4.prompt.prompt import Prompt
model, processor = load(Path(folder))
generation_stream = mx.default_stream(mx.default_device())
def generated():
    token_bytes = processor.tokenizer.token_bytes
    options = dict(token_bytes=token_bytes, end_tokens=(), max_tokens=longest)
    return (step.token for step in generate(model, Prompt(ids), **options))
""",
    "mlx-lm": """
from mlx_lm.generate import generate_step, generation_stream
from mlx_lm.utils import load_model
model, _ = load_model(Path(folder))
def generated():
    steps = generate_step(mx.array(ids), model, max_tokens=longest)
    return (int(token) for token, _ in steps)
""",
    "mlx-vlm": """
from mlx_vlm.generate import generate_step
from mlx_vlm.generate.common import generation_stream
from mlx_vlm.utils import load_model
model = load_model(Path(folder))
def generated():
    options = dict(max_tokens=longest, temperature=0)
    steps = generate_step(mx.array(ids)[None], model, None, None, **options)
    return (int(token) for token, _ in steps)
""",
}
IMPORTS = {
    OURS: "mlx_llama4.opening, mlx_llama4.generation.generate",
    "mlx-lm": "mlx_lm.utils, mlx_lm.generate",
    "mlx-vlm": "mlx_vlm.utils, mlx_vlm.generate",
}
# All compute a token ahead. A burst ends when that is done, or it would be had for nothing, and
# in the next engine's turn.
MEASURE = f"""\
import sys, time
from pathlib import Path
import mlx.core as mx, numpy as np
folder = sys.argv[1]
prompt, longest = map(int, sys.argv[2:])
ids = np.random.default_rng(0).integers(0, {IDS}, prompt).astype(np.int32)
%s
mx.clear_cache()
weights = mx.get_active_memory()
tokens = generated()
def answer(count):
    mx.reset_peak_memory()
    start, cpu_start = time.perf_counter(), time.process_time()
    found = [next(tokens) for _ in range(count)]
    mx.synchronize(generation_stream)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return [seconds, cpu_seconds, weights, mx.get_peak_memory() - weights, found]
"""


@dataclass(frozen=True)
class Settings:
    """burst: tokens of a turn; rounds: turns of each engine."""

    preset: str
    prompt: int
    burst: int
    rounds: int

    @property
    def tokens(self) -> int:
        """With the round that does not count."""
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
    outputs = options.Outputs(json, png)
    preset_config(preset)  # raises
    engines = choose_engines(only, python or (), prelude or ())
    settings = Settings(preset, prompt, burst, rounds)
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-benchmark-") as temporary:
        folder = Path(temporary)
        idle = options.ready_engines(engines, IMPORTS, folder)
        with terminal.status("Writing the model"):
            model = preset_folder(preset, folder)
        with terminal.status("Measuring the limits"):
            limits = measure_limits(load_config(model).text)
        report = _compare(model, idle, limits, settings, folder)
    outputs.publish(report)


def _compare(
    model: Path,
    idle: Mapping[Engine, Idle],
    limits: Limits,
    settings: Settings,
    folder: Path,
) -> Report:
    # In the middle of the answer.
    nbytes = decode_bytes(model, settings.prompt + settings.tokens // 2)
    tokens: dict[str, list[int]] = {}
    with contextlib.ExitStack() as stack, terminal.status("Decoding"):
        processes: dict[str, Resident] = {}

        def run_once(engine: Engine) -> Figures:
            if engine.name not in processes:
                arguments = (model, settings.prompt, settings.tokens)
                process = Resident(engine, MEASURE % WAYS[engine.name], arguments, folder)
                processes[engine.name] = stack.enter_context(process)
            process = processes[engine.name]
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

        # A first round that does not count: the prompt is read in it.
        runs = run_rounds(list(idle), run_once, settings.rounds, warm_up=True)
    return Report(
        subject="decode",
        setup=_setup(settings, nbytes, limits, same_tokens(tokens, runs)),
        machine=this_machine(),
        idle={engine.name: found for engine, found in idle.items()},
        metrics=METRICS,
        runs=runs,
    )


def same_tokens(tokens: Mapping[str, list[int]], runs: Runs) -> str:
    """How far each peer's tokens are ours."""
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
