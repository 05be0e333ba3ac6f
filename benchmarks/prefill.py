"""`python -m benchmarks prefill`: a long prompt into the caches, to its first token."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine, Idle, choose_engines
from benchmarks.harness.machine import this_machine
from benchmarks.harness.presets import Preset, preset_config, preset_folder, unpacked_dtype
from benchmarks.harness.process import PeakMemory
from benchmarks.harness.report import Metric, Report, show_bytes, show_seconds, show_share
from benchmarks.harness.resident import Resident
from benchmarks.harness.rounds import Figures, run_rounds
from benchmarks.harness.source import Size, check_room, write_checkpoint
from benchmarks.limits import measure_matmul, prefill_flops, show_rate
from mlx_llama4.cli.console import terminal
from mlx_llama4.config import TextConfig, load_config
from mlx_llama4.errors import InputError
from mlx_llama4.memory import PREFILL_SPAN

CHUNKS = (1, 4, 16)
SCALES = (1, 2, 4, 8, 16, 32, 64)
# Of the last layer, only keys and values are computed before the last token: of five layers,
# three chunked ones and a global one are at work, which is the releases' mix.
LAYERS = 5
SCALE, EXPERTS = 16, 16
VOCABULARY = 2048
IDS = 1000  # ids below are plain text to the demo's tokenizer

BITS = (4, 8)
GROUP_SIZE = 64

# Each engine's own way from ids int32 [L] to the first token, as its command line goes it.
WAYS = {
    OURS: """
from mlx_llama4.generation.prefill import prefill
from mlx_llama4.opening import load_model
from mlx_llama4.prompt.prompt import Prompt
model = load_model(Path(folder))
def first_token(ids):
    cache = model.make_cache()
    for layer in cache:
        layer.reserve(len(ids))
    mx.eval(mx.argmax(prefill(model, Prompt(ids), cache, span=step)))
""",
    "mlx-lm": """
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model
model, _ = load_model(Path(folder))
def first_token(ids):
    list(generate_step(mx.array(ids), model, max_tokens=0, prefill_step_size=step))
""",
    "mlx-vlm": """
from mlx_vlm.generate import generate_step
from mlx_vlm.utils import load_model
model = load_model(Path(folder))
def first_token(ids):
    options = dict(max_tokens=0, temperature=0, prefill_step_size=step)
    list(generate_step(mx.array(ids)[None], model, None, None, **options))
""",
}
IMPORTS = {
    OURS: "mlx_llama4.opening, mlx_llama4.generation.prefill",
    "mlx-lm": "mlx_lm.utils, mlx_lm.generate",
    "mlx-vlm": "mlx_vlm.utils, mlx_vlm.generate",
}
MEASURE = f"""\
import sys, time
from pathlib import Path
import mlx.core as mx, numpy as np
folder = sys.argv[1]
tokens, step = map(int, sys.argv[2:])
ids = np.random.default_rng(0).integers(0, {IDS}, tokens).astype(np.int32)
%s
first_token(ids[:step])
mx.clear_cache()
weights = mx.get_active_memory()
def answer(question):
    mx.reset_peak_memory()
    start, cpu_start = time.perf_counter(), time.process_time()
    first_token(ids)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return [seconds, cpu_seconds, mx.get_peak_memory() - weights]
"""


@dataclass(frozen=True)
class Settings:
    """chunks: lengths of prompts."""

    chunks: Sequence[int]
    rounds: int
    warm_up: bool


@dataclass(frozen=True)
class Model:
    """A folder, its shapes, and what the report says of it. step: tokens that go at once."""

    folder: Path
    text: TextConfig
    step: int
    setup: Mapping[str, str]


@terminal.reports_errors
def prefill(
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"Of {', '.join(Preset)}; in 4 bits. Default: as the next options say.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        int, typer.Option(metavar="N", help="The releases' sizes divided by 1, 2, 4 … 64.")
    ] = SCALE,
    layers: Annotated[int, typer.Option(metavar="N", min=1, help="Every 4th is global.")] = LAYERS,
    experts: Annotated[int, typer.Option(metavar="N", min=1, help="In each layer.")] = EXPERTS,
    chunks: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Length of the prompt in chunks; repeatable. Default: 1, 4, 16.",
            show_default=False,
        ),
    ] = None,
    chunked_only: Annotated[
        bool, typer.Option("--chunked-only", help="Ours alone, without global layers.")
    ] = False,
    bits: Annotated[
        int | None,
        typer.Option(metavar="N", help="4 or 8. Default: not quantized.", show_default=False),
    ] = None,
    rounds: options.Rounds = 3,
    warm_up: options.WarmUp = False,
    only: options.Only = None,
    python: options.Python = None,
    prelude: options.Prelude = None,
    json: options.Json = None,
    png: options.Png = None,
) -> None:
    """Prefill prompts of several chunks: seconds to the first token, peak memory.

    \b
    Example:
      python -m benchmarks prefill --preset tiny --rounds 5 --json prefill.json
    """
    outputs = options.Outputs(json, png)
    if chunked_only and only not in (None, OURS):
        raise InputError("--chunked-only is ours alone: the peers fix which layers are global")
    engines = choose_engines(OURS if chunked_only else only, python or (), prelude or ())
    size = scaled_down(scale, layers, experts, global_layers=not chunked_only)
    _check_bits(bits, size)
    if preset is not None:
        preset_config(preset)  # raises
        if size != scaled_down(SCALE, LAYERS, EXPERTS, global_layers=True) or bits is not None:
            raise InputError(
                f"--preset {preset} is a whole model; leave out the options that describe another"
            )
    settings = Settings(chunks or CHUNKS, rounds, warm_up)
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-benchmark-") as temporary:
        folder = Path(temporary)
        idle = options.ready_engines(engines, IMPORTS, folder)
        with terminal.status("Writing the model"):
            model = (
                _scaled_model(size, bits, folder)
                if preset is None
                else _preset_model(preset, folder)
            )
        report = _compare(model, idle, settings, folder)
    outputs.publish(report)


def scaled_down(scale: int, layers: int, experts: int, global_layers: bool) -> Size:
    """All widths and the chunk divided alike, so that attention keeps its share of the work.

    Heads stay 128 wide while there are eight for keys and values to divide; 5 queries each.
    """
    if scale not in SCALES:
        raise InputError(f"--scale {scale}: choose of {', '.join(map(str, SCALES))}")
    key_value_heads = max(8 // scale, 1)
    return Size(
        hidden_size=5120 // scale,
        layers=layers,
        experts=experts,
        expert_width=8192 // scale,
        vocabulary=VOCABULARY,
        head_dim=1024 // scale // key_value_heads,
        heads=5 * key_value_heads,
        key_value_heads=key_value_heads,
        chunk=8192 // scale,
        global_layers=global_layers,
    )


def _check_bits(bits: int | None, size: Size) -> None:
    if bits is None:
        return
    if bits not in BITS:
        raise InputError(f"--bits {bits}: choose of {', '.join(map(str, BITS))}")
    if size.hidden_size % GROUP_SIZE:
        raise InputError(
            f"--bits {bits}: a row of {size.hidden_size} weights does not divide into groups of "
            f"{GROUP_SIZE}; --scale 16 or less does"
        )


def feed_forward_over_attention(size: Size) -> float:
    """FLOPs of a token's two MLPs over those of its attention to one chunk of keys."""
    feed_forward = 2 * 6 * size.hidden_size * size.expert_width
    return feed_forward / (4 * size.heads * size.head_dim * size.chunk)


def write_model(size: Size, bits: int | None, folder: Path) -> tuple[Path, str]:
    """A model folder that all engines load, and the dtype of what is not packed in it."""
    from mlx_llama4.convert.recipes import Recipe
    from mlx_llama4.convert.run import convert
    from mlx_llama4.quantization import Quantization

    dtype = unpacked_dtype()
    packing = None if bits is None else Quantization(GROUP_SIZE, bits)
    source = write_checkpoint(size, folder / "source")
    written = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    check_room(folder, 2 * written, source_is_free=True)
    convert(source, folder / "model", Recipe(dtype, packing))
    return folder / "model", dtype


def _preset_model(name: str, folder: Path) -> Model:
    """In steps of a chunk, or of as many tokens as all engines take unless told otherwise."""
    model = preset_folder(name, folder)
    text = load_config(model).text
    described = f"preset {name}, 4 bits, {unpacked_dtype()} what is not packed"
    return Model(model, text, min(text.attention_chunk_size, PREFILL_SPAN), {"model": described})


def _scaled_model(size: Size, bits: int | None, folder: Path) -> Model:
    """In steps of a quarter of a chunk, as 2,048 tokens are of the releases' 8,192."""
    model, dtype = write_model(size, bits, folder)
    packed = "" if bits is None else f", weights in {bits} bits"
    layers = "every 4th global" if size.global_layers else "none global"
    setup = {
        "model": f"random {dtype}{packed}, {size.layers} layers ({layers}), hidden size "
        f"{size.hidden_size}, {size.heads} heads of {size.head_dim} on {size.key_value_heads}, "
        f"{size.experts} experts of width {size.expert_width}",
        "proportion": f"feed-forward : attention to one chunk of keys = "
        f"{feed_forward_over_attention(size):.1f} : 1 in FLOPs (the releases: 3.0 : 1)",
    }
    return Model(model, load_config(model).text, size.chunk // 4, setup)


def _compare(model: Model, idle: Mapping[Engine, Idle], settings: Settings, folder: Path) -> Report:
    with terminal.status("Measuring the limit"):
        matmul = measure_matmul(model.text)

    def run_once(engine: Engine) -> Figures:
        figures: dict[str, float] = {}
        for chunks in settings.chunks:
            tokens = chunks * model.text.attention_chunk_size
            code, arguments = MEASURE % WAYS[engine.name], (model.folder, tokens, model.step)
            with Resident(engine, code, arguments, folder) as process:
                held = process.memory().anonymous_bytes
                with PeakMemory(process.pid) as most:
                    seconds, cpu_seconds, peak = process.ask(None)
            flops = prefill_flops(model.text, tokens)
            figures[f"seconds_{chunks}"] = seconds
            figures[f"seconds_a_token_{chunks}"] = seconds / tokens
            figures[f"share_of_matmul_{chunks}"] = flops / seconds / matmul
            # For MLX's CPU backend on a machine that is not quiet; in JSON alone.
            figures[f"cpu_seconds_{chunks}"] = cpu_seconds
            figures[f"peak_bytes_{chunks}"] = peak
            figures[f"process_bytes_{chunks}"] = most.anonymous_bytes - held
        return figures

    runs = run_rounds(list(idle), run_once, settings.rounds, settings.warm_up, terminal.note)
    has_global = any(kind.attention == "global" for kind in model.text.layers)
    return Report(
        subject="prefill" if has_global else "prefill, chunked layers alone",
        setup=_setup(model, matmul, settings),
        machine=this_machine(),
        idle={engine.name: found for engine, found in idle.items()},
        metrics=_metrics(settings, has_global),
        runs=runs,
    )


def _setup(model: Model, matmul: float, settings: Settings) -> dict[str, str]:
    first = "after a warm-up" if settings.warm_up else "no warm-up"
    return {
        **model.setup,
        "prompt": f"chunks of {model.text.attention_chunk_size:,} tokens, in steps of "
        f"{model.step:,}",
        "matmul": f"{show_rate(matmul)}, dense: the limit",
        "seconds": "from ids to the first token, weights loaded, one step done before",
        "peak memory": "MLX's own count, above the weights; of the process: anonymous, above what "
        "it held before",
        "rounds": f"{settings.rounds}, {first}; a fresh process for each length, taking turns",
    }


def _metrics(settings: Settings, has_global: bool) -> list[Metric]:
    metrics = []
    for count in settings.chunks:
        length = "1 chunk" if count == 1 else f"{count} chunks"
        # Without global layers the question is whether seconds grow with the length and no faster.
        if has_global:
            metrics.append(Metric(f"seconds_{count}", length, show_seconds))
        else:
            key = f"seconds_a_token_{count}"
            metrics.append(Metric(key, f"{length}, a token", _show_milliseconds))
        share = f"share_of_matmul_{count}"
        metrics += [
            Metric(share, "  of the matmul limit", show_share, compared=False),
            Metric(f"peak_bytes_{count}", "  peak memory", show_bytes),
            Metric(f"process_bytes_{count}", "  of the process", show_bytes),
        ]
    return metrics


def _show_milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3f} ms"
