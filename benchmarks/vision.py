"""`python -m benchmarks vision`: tiles of a picture through the vision tower, beside mlx-vlm's.

mlx-lm has none. Each engine loads the same weights once and stays; they take turns.
"""

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine, Idle, choose_engines
from benchmarks.harness.machine import this_machine
from benchmarks.harness.presets import unpacked_dtype
from benchmarks.harness.report import Metric, Report, show_bytes, show_share
from benchmarks.harness.resident import Resident
from benchmarks.harness.rounds import Figures, run_rounds
from benchmarks.limits import measure_matmul, show_rate
from benchmarks.random_model import recipe_of, scaled_release, write_random_model
from mlx_llama4.cli.console import terminal
from mlx_llama4.config import VisionConfig, load_config
from mlx_llama4.errors import InputError, RunError

PEER = "mlx-vlm"
HEAD_DIM = 88
RELEASED_HEADS, RELEASED_LAYERS = 16, 34
# Of the norm of the peer's output, that of the difference from ours.
TOLERANCES = {"float32": 1e-5, "bfloat16": 3e-2}

# Each engine's own tower: `tower`, `layer(x)`, and whether its GELU is exact, if it knows another.
WAYS = {
    OURS: """
from mlx_llama4.opening import load_model
tower = load_model(Path(folder)).vision_model
def layer(x):
    return tower.model.layers[0](x)
def choose_gelu(exact):
    pass
""",
    PEER: """
from mlx import nn
from mlx_vlm.utils import load_model
tower = load_model(Path(folder)).vision_model
def layer(x):
    return tower.model.layers[0](x, freqs_ci=tower.rotary_embedding(x))
mlps = [layer.mlp for layer in tower.model.layers] + [tower.vision_adapter.mlp]
its_own = mlps[0].activation_fn
def choose_gelu(exact):
    for mlp in mlps:
        mlp.activation_fn = nn.GELU() if exact else its_own
""",
}
IMPORTS = {OURS: "mlx_llama4.opening", PEER: "mlx_vlm.utils"}
# A question: [which part, exact GELU or its own, a file for the output or null].
MEASURE = """\
import json, sys, time
from pathlib import Path
import mlx.core as mx, numpy as np
folder, tiles = sys.argv[1], int(sys.argv[2])
%s
mx.eval(tower.parameters())
vision = json.loads((Path(folder) / "config.json").read_text())["vision_config"]
side, width = vision["image_size"], vision["hidden_size"]
patches = (side // vision["patch_size"]) ** 2
def drawn(*shape):
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    return mx.array(values).astype(tower.class_embedding.dtype)
pixels, hidden = drawn(tiles, 3, side, side), drawn(tiles, patches + 1, width)
mx.eval(pixels, hidden)
parts = {
    "unfold": lambda: tower.patch_embedding.unfold(pixels),
    "patches": lambda: tower.patch_embedding(pixels),
    "layer": lambda: layer(hidden),
    "tower": lambda: tower(pixels),
}
def answer(question):
    part, exact, file = question
    choose_gelu(exact)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    start, cpu_start = time.perf_counter(), time.process_time()
    output = parts[part]()
    mx.eval(output)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    if file is not None:
        np.save(file, np.array(output.astype(mx.float32)))
    return [seconds, cpu_seconds, mx.get_peak_memory() - before]
"""


@dataclass(frozen=True)
class Settings:
    vision: VisionConfig
    tiles: int
    rounds: int
    dtype: str


@terminal.reports_errors
def vision(
    heads: Annotated[
        int, typer.Option(metavar="N", min=1, max=16, help=f"Of {HEAD_DIM} each; the width.")
    ] = 8,
    layers: Annotated[int, typer.Option(metavar="N", min=1, help="Of the tower.")] = 2,
    tiles: Annotated[int, typer.Option(metavar="N", min=1, help="Of 336 pixels, at once.")] = 1,
    full: Annotated[
        bool, typer.Option("--full", help="The releases' tower: 16 heads, 34 layers.")
    ] = False,
    rounds: options.Rounds = 5,
    only: options.Only = None,
    python: options.Python = None,
    prelude: options.Prelude = None,
    json: options.Json = None,
    png: options.Png = None,
) -> None:
    """Encode tiles: patch embedding, a layer, the whole tower, beside mlx-vlm.

    \b
    Example:
      python -m benchmarks vision --rounds 9 --json vision.json
    """
    outputs = options.Outputs(json, png)
    engines = choose_engines(only or f"{OURS},{PEER}", python or (), prelude or ())
    if unfit := [engine.name for engine in engines if engine.name not in WAYS]:
        raise InputError(f"--only {unfit[0]}: it has no vision tower")
    if full:
        heads, layers = RELEASED_HEADS, RELEASED_LAYERS
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-benchmark-") as temporary:
        folder = Path(temporary)
        idle = options.ready_engines(engines, IMPORTS, folder)
        with terminal.status("Writing the model"):
            model = write_tower(heads, layers, folder / "model")
        settings = Settings(load_config(model).vision, tiles, rounds, unpacked_dtype())
        with terminal.status("Measuring the limit"):
            limit = measure_matmul(settings.vision)
        report = _compare(model, idle, limit, settings, folder)
    outputs.publish(report)


def tower_config(heads: int, layers: int) -> dict[str, Any]:
    """config.json of the releases' tower with so many heads, under the least of a text tower."""
    raw = scaled_release("scout", scale=16, layers=1, experts=2, vocabulary=3072)
    width = heads * HEAD_DIM
    projected = 4096 * heads // RELEASED_HEADS
    raw["vision_config"] |= {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "projector_input_dim": projected,
        "projector_output_dim": projected,
        "vision_output_dim": projected,
    }
    return raw


def write_tower(heads: int, layers: int, out: Path) -> Path:
    """A model folder with random weights, not packed, that all engines load."""
    write_random_model(out, tower_config(heads, layers), recipe_of(None, None, unpacked_dtype()))
    return out


def part_flops(vision: VisionConfig) -> dict[str, int]:
    """Of a tile: matmuls and attention, 2 for each product."""
    width, inner = vision.hidden_size, vision.intermediate_size
    patches, projected = vision.patches_per_side**2, vision.projector_output_dim
    embedding = 2 * patches * vision.num_channels * vision.patch_size**2 * width
    positions = patches + 1
    layer = positions * (8 * width**2 + 4 * width * inner + 4 * positions * width)
    adapter = 2 * vision.tokens_per_tile * (inner * projected + projected**2)
    tower = embedding + vision.num_hidden_layers * layer + adapter
    return {"patches": embedding, "layer": layer, "tower": tower}


def _compare(
    model: Path, idle: Mapping[Engine, Idle], limit: float, settings: Settings, folder: Path
) -> Report:
    with contextlib.ExitStack() as stack, terminal.status("Encoding"):
        processes: dict[str, Resident] = {}

        def run_once(engine: Engine) -> Figures:
            if engine.name not in processes:
                code = MEASURE % WAYS[engine.name]
                process = Resident(engine, code, (model, settings.tiles), folder)
                processes[engine.name] = stack.enter_context(process)
            return _ask(processes[engine.name], engine.name, limit, settings, folder)

        # The first round, which does not count, builds the kernels.
        runs = run_rounds(list(idle), run_once, settings.rounds, warm_up=True)
    return Report(
        subject="vision",
        setup=_setup(limit, settings, same_outputs(folder, settings.dtype)),
        machine=this_machine(),
        idle={engine.name: found for engine, found in idle.items()},
        metrics=METRICS,
        runs=runs,
    )


def _ask(process: Resident, name: str, limit: float, settings: Settings, folder: Path) -> Figures:
    flops = part_flops(settings.vision)
    figures: dict[str, float] = {}
    for key, part, exact in (
        ("unfold", "unfold", True),
        ("patches", "patches", True),
        ("layer", "layer", True),
        ("tower", "tower", True),
        ("own_tower", "tower", False),
    ):
        if name == OURS and not exact:  # its own is exact: no second run
            found = figures["tower_seconds"], figures["tower_cpu_seconds"], figures["tower_bytes"]
        else:
            file = folder / f"{name}-{key}.npy"
            found = process.ask([part, exact, None if file.exists() else str(file)])
        figures[f"{key}_seconds"], figures[f"{key}_cpu_seconds"], figures[f"{key}_bytes"] = found
        if part in flops:
            done = flops[part] * settings.tiles
            figures[f"{key}_share_of_matmul"] = done / figures[f"{key}_seconds"] / limit
    figures["peak_resident_bytes"] = process.memory().peak_resident_bytes
    return figures


def same_outputs(folder: Path, dtype: str) -> str:
    """How far the peer's outputs are from ours. Raises RunError if by more than the tolerance:
    they would not have computed the same.
    """
    if not all(
        (folder / f"{name}.npy").exists() for name in (f"{PEER}-own_tower", f"{OURS}-tower")
    ):
        return "compared with nobody's"
    found = {}
    for key, ours in (("layer", "layer"), ("tower", "tower"), ("own_tower", "tower")):
        peer = np.load(folder / f"{PEER}-{key}.npy")
        difference = np.load(folder / f"{OURS}-{ours}.npy").reshape(peer.shape) - peer
        found[key] = float(np.linalg.norm(difference) / np.linalg.norm(peer))
    tolerance = TOLERANCES[dtype]
    if (worst := max(found["layer"], found["tower"])) > tolerance:
        raise RunError(f"outputs differ by {worst:.0e} of {PEER}'s, {tolerance:.0e} is allowed")
    return (
        f"{PEER}'s differ from ours by {found['tower']:.0e} (norm; up to {tolerance:.0e} allowed) "
        f"with exact GELU, by {found['own_tower']:.0e} with its own"
    )


def _setup(limit: float, settings: Settings, same: str) -> dict[str, str]:
    vision = settings.vision
    flops = part_flops(vision)["tower"]
    return {
        "tower": f"random {settings.dtype}, {vision.num_hidden_layers} layers, width "
        f"{vision.hidden_size}, {vision.num_attention_heads} heads, MLP {vision.intermediate_size}",
        "input": f"{settings.tiles} tile(s) of {vision.image_size} pixels at once",
        "a tile": f"{flops / 1e9:,.3g} GFLOP",
        "matmul": show_rate(limit),
        "GELU": f"exact, as the reference's; {PEER}'s own is another, in the row that says so",
        "outputs": same,
        "rounds": f"{settings.rounds} after one that does not count, taking turns; each engine "
        "loaded once",
    }


def _show_milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"


METRICS = (
    Metric("unfold_seconds", "patches, not yet multiplied", _show_milliseconds),
    Metric("patches_seconds", "patch embedding", _show_milliseconds),
    Metric("layer_seconds", "a layer", _show_milliseconds),
    Metric("tower_seconds", "whole tower", _show_milliseconds),
    Metric("own_tower_seconds", "whole tower, its own GELU", _show_milliseconds),
    Metric("tower_cpu_seconds", "whole tower, CPU", _show_milliseconds),
    Metric("layer_share_of_matmul", "a layer, of the matmul limit", show_share, compared=False),
    Metric("tower_share_of_matmul", "whole tower, of the matmul limit", show_share, compared=False),
    Metric("patches_bytes", "patch embedding, peak memory", show_bytes),
    Metric("tower_bytes", "whole tower, peak memory", show_bytes),
    Metric("peak_resident_bytes", "peak RSS", show_bytes),
)
