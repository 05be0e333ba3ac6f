"""`python -m benchmarks vision`: tiles of a picture through the vision tower, beside mlx-vlm's.

mlx-lm has no vision tower. Each engine loads the same weights once and stays; they take turns.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine
from benchmarks.harness.limits import measure_matmul, show_rate
from benchmarks.harness.measuring import Bench, measuring
from benchmarks.harness.presets import unpacked_dtype
from benchmarks.harness.random_model import recipe_of, scaled_release, write_random_model
from benchmarks.harness.report import Metric, show_bytes, show_share
from benchmarks.harness.resident import Resident, Residents
from benchmarks.harness.rounds import Figures, run_rounds
from mlx_llama4.cli.console import terminal
from mlx_llama4.config import VisionConfig, load_config
from mlx_llama4.errors import RunError

PEER = "mlx-vlm"
HEAD_DIM = 88
RELEASED_HEADS, RELEASED_LAYERS = 16, 34
# The norm of the difference from ours over the norm of the peer's output.
TOLERANCES = {"float32": 1e-5, "bfloat16": 3e-2}

IMPORTS = {OURS: "mlx_llama4.opening", PEER: "mlx_vlm.utils"}


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    vision: VisionConfig
    tiles: int
    rounds: int
    dtype: str


@terminal.reports_errors
def vision(
    heads: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=16, help=f"Heads of {HEAD_DIM}, which make the width."
        ),
    ] = 8,
    layers: Annotated[int, typer.Option(metavar="N", min=1, help="Layers of the tower.")] = 2,
    tiles: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tiles of 336 pixels at once.")
    ] = 1,
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
    if full:
        heads, layers = RELEASED_HEADS, RELEASED_LAYERS
    without = "it has no vision tower"
    with measuring(IMPORTS, only, python, prelude, json, png, others=without) as bench:
        with terminal.status("Writing the model"):
            model = write_tower(heads, layers, bench.folder / "model")
        tower = load_config(model).vision
        assert tower is not None
        with terminal.status("Measuring the limit"):
            limit = measure_matmul(tower)
        _compare(bench, model, limit, Settings(tower, tiles, rounds, unpacked_dtype()))


def tower_config(heads: int, layers: int) -> dict[str, Any]:
    """config.json of the releases' tower with this many heads, beside the smallest text tower."""
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
    """Write a model folder with random weights, not packed, that all engines load."""
    write_random_model(out, tower_config(heads, layers), recipe_of(None, None, unpacked_dtype()))
    return out


def part_flops(vision: VisionConfig) -> dict[str, int]:
    """FLOPs of a tile in each part: matmuls and attention, 2 for each product."""
    width, inner = vision.hidden_size, vision.intermediate_size
    patches, projected = vision.patches_per_side**2, vision.projector_output_dim
    embedding = 2 * patches * vision.num_channels * vision.patch_size**2 * width
    positions = patches + 1
    layer = positions * (8 * width**2 + 4 * width * inner + 4 * positions * width)
    adapter = 2 * vision.tokens_per_tile * (inner * projected + projected**2)
    tower = embedding + vision.num_hidden_layers * layer + adapter
    return {"patches": embedding, "layer": layer, "tower": tower}


def _compare(bench: Bench, model: Path, limit: float, settings: Settings) -> None:
    with (
        Residents("vision", (model, settings.tiles), bench.folder) as residents,
        terminal.status("Encoding"),
    ):

        def run_once(engine: Engine) -> Figures:
            return _ask(residents.of(engine), engine.name, limit, settings, bench.folder)

        # The first round, which does not count, builds the kernels.
        runs = run_rounds(bench.engines, run_once, settings.rounds, warm_up=True)
    setup = _setup(limit, settings, same_outputs(bench.folder, settings.dtype))
    bench.publish("vision", setup, METRICS, runs)


def _ask(process: Resident, name: str, limit: float, settings: Settings, folder: Path) -> Figures:
    """All parts once. The first answers leave their outputs in `folder`."""
    flops = part_flops(settings.vision)
    figures: dict[str, float] = {}
    for key, part, exact in (
        ("unfold", "unfold", True),
        ("patches", "patches", True),
        ("layer", "layer", True),
        ("tower", "tower", True),
        ("own_tower", "tower", False),
    ):
        if name == OURS and not exact:  # ours is exact: no second run
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
    """How far the peer's outputs are from ours.

    Raises RunError beyond the tolerance: the engines did not compute the same.
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
