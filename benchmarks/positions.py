"""`python -m benchmarks positions`: how far a chunked layer drifts as positions grow.

The same content at the start of a near and of a far chunk has the same attention in exact
arithmetic. Ours counts positions inside the chunk, the peers from the prompt's first token.
"""

import json as json_module
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine, Idle
from benchmarks.harness.machine import this_machine
from benchmarks.harness.measuring import measuring
from benchmarks.harness.process import run_measured
from benchmarks.harness.report import describe_engine
from benchmarks.harness.source import Size, config
from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import InputError, RunError

OFFSETS = (0, 131_072, 1_048_576, 9_994_240)  # multiples of 8,192
DTYPES = ("float32", "bfloat16", "float16")
# A layer's attention as released; experts are not touched.
RELEASED = Size(5120, 1, 1, 32, 1024, head_dim=128, heads=40, key_value_heads=8)
KINDS: Mapping[str, Mapping[str, Any]] = {
    "Scout": {
        "use_qk_norm": True,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "factor": 16.0,
            "high_freq_factor": 1.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "Maverick": {"use_qk_norm": False, "rope_theta": 500_000.0, "rope_scaling": None},
}

IMPORTS = {
    OURS: "mlx_llama4.model.llama4",
    "mlx-lm": "mlx_lm.models.llama4",
    "mlx-vlm": "mlx_vlm.models.llama4.language",
}

# Engine's name → kind of layer → offset → drift.
Drifts = dict[str, dict[str, dict[int, float]]]


@terminal.reports_errors
def positions(
    tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of content.")] = 128,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    only: options.Only = None,
    python: options.Python = None,
    prelude: options.Prelude = None,
    json: options.Json = None,
) -> None:
    """Attend to the same content at far positions: how much the output changes.

    \b
    Example:
      python -m benchmarks positions --tokens 256
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: choose of {', '.join(DTYPES)}")
    with measuring(IMPORTS, only, python, prelude, json) as bench:
        layer = write_layer(RELEASED, tokens, dtype, bench.folder / "layer.safetensors")
        drifts: Drifts = {}
        for engine in bench.idle:
            terminal.note(engine.name)
            try:
                drifts[engine.name] = measure(engine, RELEASED, layer)
            except RunError as failure:
                if engine.name == OURS:
                    raise RunError(f"{OURS}: {failure}") from None
                terminal.note(f"{engine.name} is left out ({failure})")
        if not drifts:
            raise RunError("no engine is left to compare")
        what = f"{tokens} tokens through one attention layer of the releases' size, random {dtype}"
        _print(drifts, what, bench.idle)
        bench.outputs.write_json(
            {"machine": vars(this_machine()), "what": what, "relative_drift": drifts}
        )


def write_layer(size: Size, tokens: int, dtype: str, file: Path, seed: int = 0) -> Path:
    """Write random input x [1, tokens, hidden], and projections under the modules' names."""
    import mlx.core as mx

    mx.random.seed(seed)
    queries, keys = size.heads * size.head_dim, size.key_value_heads * size.head_dim
    arrays = {
        "x": mx.random.normal((1, tokens, size.hidden_size)),
        "q_proj.weight": mx.random.normal((queries, size.hidden_size), scale=0.02),
        "k_proj.weight": mx.random.normal((keys, size.hidden_size), scale=0.02),
        "v_proj.weight": mx.random.normal((keys, size.hidden_size), scale=0.02),
        "o_proj.weight": mx.random.normal((size.hidden_size, queries), scale=0.02),
    }
    named = getattr(mx, dtype)
    mx.save_safetensors(str(file), {name: array.astype(named) for name, array in arrays.items()})
    return file


def measure(engine: Engine, size: Size, layer: Path) -> dict[str, dict[int, float]]:
    """Kind of layer → offset → how far the output is from the one at the first offset.

    That is the norm of the difference over the norm. Raises RunError if the engine fails.
    """
    found = {}
    for kind, keys in KINDS.items():
        raw = config(size)
        raw["text_config"] |= keys
        command = engine.run("positions", json_module.dumps(raw), layer, *OFFSETS)
        drifts = run_measured(command, layer.parent).result
        found[kind] = {int(offset): drift for offset, drift in drifts.items()}
    return found


def _print(drifts: Drifts, what: str, idle: Mapping[Engine, Idle]) -> None:
    terminal.line("relative drift of attention from the same content at offset 0")
    lines: list[tuple[str, ...]] = [("content", what), ("machine", str(this_machine()))]
    for engine, found in idle.items():
        if engine.name in drifts:
            lines.append((engine.name, describe_engine(engine.name, found)))
    terminal.table(lines)
    terminal.line()
    rows: list[tuple[str, ...]] = [("layer", "offset", *drifts)]
    for kind in KINDS:
        for offset in OFFSETS[1:]:
            shown = (_show(found[kind][offset]) for found in drifts.values())
            rows.append((kind, f"{offset:,}", *shown))
    terminal.table(rows, right=tuple(range(1, len(rows[0]))))


def _show(drift: float) -> str:
    return f"{drift:.1e}" if drift else "0"
