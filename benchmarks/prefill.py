"""`python -m benchmarks prefill`: a long prompt into the caches, up to its first token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine
from benchmarks.harness.limits import measure_matmul, prefill_flops, show_rate
from benchmarks.harness.measuring import Bench, measuring
from benchmarks.harness.presets import (
    PLAIN_IDS,
    Preset,
    check_preset,
    preset_folder,
    unpacked_dtype,
)
from benchmarks.harness.process import PeakMemory
from benchmarks.harness.report import Metric, show_bytes, show_seconds, show_share
from benchmarks.harness.resident import start_resident
from benchmarks.harness.rounds import Figures, describe_rounds, run_rounds
from benchmarks.harness.scaled_model import (
    EXPERTS,
    LAYERS,
    SCALE,
    check_bits,
    feed_forward_over_attention,
    scaled_down,
    write_model,
)
from benchmarks.harness.source import Size
from mlx_llama4.cli.console import terminal
from mlx_llama4.config import TextConfig, load_config
from mlx_llama4.errors import InputError
from mlx_llama4.memory import PREFILL_SPAN

CHUNKS = (1, 4, 16)
IMPORTS = {
    OURS: "mlx_llama4.opening, mlx_llama4.generation.prefill",
    "mlx-lm": "mlx_lm.utils, mlx_lm.generate",
    "mlx-vlm": "mlx_vlm.utils, mlx_vlm.generate",
}


@dataclass(frozen=True)
class Settings:
    """What the options say of prompts and rounds."""

    chunks: Sequence[int]  # the lengths of prompts
    rounds: int
    warm_up: bool


@dataclass(frozen=True)
class Model:
    """The model that reads prompts."""

    folder: Path
    text: TextConfig
    chunk: int  # tokens
    step: int  # tokens that go through the layers at once
    setup: Mapping[str, str]  # what the report says of it


@terminal.reports_errors
def prefill(
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"The model, in 4 bits: {', '.join(Preset)}. Default: as the next options say.",
            show_default=False,
        ),
    ] = None,
    scale: options.Scale = SCALE,
    layers: Annotated[
        int, typer.Option(metavar="N", min=1, help="Layers; every 4th is global.")
    ] = LAYERS,
    experts: Annotated[
        int, typer.Option(metavar="N", min=1, help="Experts in each layer.")
    ] = EXPERTS,
    chunks: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Chunks of the prompt; repeatable. Default: 1, 4, 16.",
            show_default=False,
        ),
    ] = None,
    chunked_only: Annotated[
        bool, typer.Option("--chunked-only", help="Ours alone, without global layers.")
    ] = False,
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Quantize to 4 or 8 bits. Default: not at all.", show_default=False
        ),
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
    if chunked_only and only not in (None, OURS):
        raise InputError("--chunked-only is ours alone: the peers fix which layers are global")
    size = scaled_down(scale, layers, experts, global_layers=not chunked_only)
    check_bits(bits, size)
    if preset is not None:
        check_preset(preset)
        if size != scaled_down() or bits is not None:
            raise InputError(
                f"--preset {preset} is a whole model; leave out the options that describe another"
            )
    settings = Settings(chunks or CHUNKS, rounds, warm_up)
    with measuring(IMPORTS, OURS if chunked_only else only, python, prelude, json, png) as bench:
        if preset is None:
            model = _scaled_model(size, bits, bench.folder)
        else:
            model = _preset_model(preset, bench.folder)
        _compare(bench, model, settings)


def _preset_model(name: str, folder: Path) -> Model:
    """In steps of a chunk, or of as many tokens as all engines take by default if that is less."""
    model = preset_folder(name, folder)
    setup = {"model": f"preset {name}, 4 bits, {unpacked_dtype()} what is not packed"}
    text = load_config(model).text
    chunk = text.attention_chunk_size
    assert chunk is not None
    return Model(model, text, chunk, min(chunk, PREFILL_SPAN), setup)


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
    return Model(model, load_config(model).text, size.chunk, size.chunk // 4, setup)


def _compare(bench: Bench, model: Model, settings: Settings) -> None:
    with terminal.status("Measuring the limit"):
        matmul = measure_matmul(model.text)

    def run_once(engine: Engine) -> Figures:
        figures: dict[str, float] = {}
        for chunks in settings.chunks:
            tokens = chunks * model.chunk
            arguments = (model.folder, tokens, model.step, PLAIN_IDS)
            with start_resident(engine, "prefill", arguments, bench.folder) as process:
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

    runs = run_rounds(bench.engines, run_once, settings.rounds, settings.warm_up, terminal.note)
    has_global = any(kind.attention == "global" for kind in model.text.layers)
    bench.publish(
        "prefill" if has_global else "prefill, chunked layers alone",
        _setup(model, matmul, settings),
        _metrics(settings, has_global),
        runs,
    )


def _setup(model: Model, matmul: float, settings: Settings) -> dict[str, str]:
    return {
        **model.setup,
        "prompt": f"chunks of {model.chunk:,} tokens, in steps of {model.step:,}",
        "matmul": f"{show_rate(matmul)}, dense: the limit",
        "seconds": "from ids to the first token, weights loaded, one step done before",
        "peak memory": "MLX's own count, above the weights; of the process: anonymous, above what "
        "it held before",
        "rounds": f"{describe_rounds(settings.rounds, settings.warm_up)}; a fresh process for each "
        "length, taking turns",
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
