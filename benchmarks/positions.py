"""`python -m benchmarks positions`: how far a chunked layer drifts as positions grow.

The same content at the start of a chunk near and far: in exact arithmetic RoPE gives the same
attention. Ours counts positions inside the chunk, the peers from the prompt's first token.
"""

import json as json_module
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine, Idle, choose_engines
from benchmarks.harness.machine import this_machine
from benchmarks.harness.process import run_measured
from benchmarks.harness.report import describe_engine, write_whole
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

# Each engine's own attention module with its own cache, empty, at an offset.
WAYS = {
    OURS: """
from mlx_llama4.config import parse_config
from mlx_llama4.model.attention import Attention
from mlx_llama4.model.llama4 import ATTENTION_STEP, make_layer_cache
text = parse_config(raw).text
attention = Attention(text, text.layers[0])
def attend(x, offset):
    cache = make_layer_cache(text, text.layers[0])
    cache.offset = offset
    return attention(x, cache, ATTENTION_STEP)
""",
    "mlx-lm": """
from mlx_lm.models.cache import ChunkedKVCache
from mlx_lm.models.llama4 import Attention, TextArgs
text = TextArgs.from_dict(raw["text_config"])
attention = Attention(text, 0)
def attend(x, offset):
    cache = ChunkedKVCache(text.attention_chunk_size)
    cache.offset = cache.start_position = offset
    return attention(x, "causal", cache)
""",
    "mlx-vlm": """
from mlx_vlm.models.cache import ChunkedKVCache
from mlx_vlm.models.llama4.config import TextConfig
from mlx_vlm.models.llama4.language import Attention
text = TextConfig.from_dict(raw["text_config"])
attention = Attention(text, 0)
def attend(x, offset):
    cache = ChunkedKVCache(text.attention_chunk_size)
    cache.offset = cache.start_position = offset
    return attention(x, "causal", cache)
""",
}
IMPORTS = {
    OURS: "mlx_llama4.model.llama4",
    "mlx-lm": "mlx_lm.models.llama4",
    "mlx-vlm": "mlx_vlm.models.llama4.language",
}
MEASURE = """\
import json, sys
import mlx.core as mx
raw = json.loads(sys.argv[1])
arrays = mx.load(sys.argv[2])
offsets = [int(offset) for offset in sys.argv[3:]]
%s
x = arrays.pop("x")
attention.load_weights(list(arrays.items()))
first = attend(x, offsets[0]).astype(mx.float32)
drifts = {}
for offset in offsets:
    error = attend(x, offset).astype(mx.float32) - first
    drifts[offset] = (mx.linalg.norm(error) / mx.linalg.norm(first)).item()
print(json.dumps(drifts))
"""

# Engine's name → kind of layer → offset → drift.
Drifts = dict[str, dict[str, dict[int, float]]]


@terminal.reports_errors
def positions(
    tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Of content.")] = 128,
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
    outputs = options.Outputs(json, None)
    if dtype not in DTYPES:
        raise InputError(f"--dtype {dtype}: choose of {', '.join(DTYPES)}")
    engines = choose_engines(only, python or (), prelude or ())
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-benchmark-") as temporary:
        folder = Path(temporary)
        idle = options.ready_engines(engines, IMPORTS, folder)
        layer = write_layer(RELEASED, tokens, dtype, folder / "layer.safetensors")
        drifts: Drifts = {}
        for engine in idle:
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
    _print(drifts, what, idle)
    if outputs.json is not None:
        whole = {"machine": vars(this_machine()), "what": what, "relative_drift": drifts}
        write_whole(outputs.json, (json_module.dumps(whole, indent=2) + "\n").encode())


def write_layer(size: Size, tokens: int, dtype: str, file: Path, seed: int = 0) -> Path:
    """Random input x [1, tokens, hidden] and projections, under the modules' names."""
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
    """Kind of layer → offset → how far the output is from that at the first offset.

    Relative: the norm of the difference over the norm. Raises RunError if the engine fails.
    """
    found = {}
    for kind, keys in KINDS.items():
        raw = config(size)
        raw["text_config"] |= keys
        command = engine.command(
            MEASURE % WAYS[engine.name], json_module.dumps(raw), layer, *OFFSETS
        )
        output = run_measured(command, layer.parent).output
        drifts = json_module.loads(output.splitlines()[-1])
        found[kind] = {int(offset): drift for offset, drift in drifts.items()}
    return found


def _print(drifts: Drifts, what: str, idle: Mapping[Engine, Idle]) -> None:
    terminal.line("relative drift of attention from the same content at offset 0")
    lines = [("content", what), ("machine", str(this_machine()))]
    for engine, found in idle.items():
        if engine.name in drifts:
            lines.append((engine.name, describe_engine(engine.name, found)))
    terminal.table(lines)
    terminal.line()
    rows = [("layer", "offset", *drifts)]
    for kind in KINDS:
        for offset in OFFSETS[1:]:
            shown = (_show(found[kind][offset]) for found in drifts.values())
            rows.append((kind, f"{offset:,}", *shown))
    terminal.table(rows, right=tuple(range(1, len(rows[0]))))


def _show(drift: float) -> str:
    return f"{drift:.1e}" if drift else "0"
