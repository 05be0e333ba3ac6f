"""`python -m benchmarks streaming`: tokens with experts on the disk, beside all in memory.

A random model is written for the run. Each row of the table is a process of its own, and rows take
turns; before each round the same files are read plainly, which is the limit.
"""

import itertools
import json as json_module
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness import options
from benchmarks.harness.disk import (
    ExpertRanges,
    Speed,
    can_pass_cache,
    expert_ranges,
    read_experts,
    read_sequentially,
    some_of,
)
from benchmarks.harness.engines import OURS, Engine, Idle, choose_engines
from benchmarks.harness.machine import this_machine
from benchmarks.harness.page_cache import prepare_page_cache
from benchmarks.harness.process import run_measured
from benchmarks.harness.report import write_whole
from benchmarks.harness.rounds import Figures, Runs, run_rounds
from benchmarks.random_model import packing_of, recipe_of, scaled_release, write_random_model
from benchmarks.reader import read_with_store
from benchmarks.streaming_report import Found, as_json, derive, print_found
from benchmarks.streaming_ways import IMPORTS, MEASURE, REPACK, WAYS
from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import InputError
from mlx_llama4.offload.budget import BUFFER_SHARE
from mlx_llama4.offload.expert_store import PIECE_BYTES, READERS
from mlx_llama4.quantization import Quantization
from mlx_llama4.units import human_bytes

PEER = "mlx-vlm"
BUDGETS = (10, 25, 50, 75, 100)  # percent of all experts' bytes
RESIDENT = f"{OURS}, all in memory"
PLAIN_READS = "plain reads"  # take their turn among the rows
VOCABULARY = 4096
READ_BYTES = 10**9  # of each plain read, or all
READS_A_ROUND = 3  # disks are less steady than processors


@dataclass(frozen=True)
class Row:
    """What a process is told. budget: bytes for experts; None: all in memory, not streamed.
    page_cache: may the system keep what was read. fill: read experts for all slots first.
    reads_back: go on as if some expert might be missing, though none is.
    """

    engine: Engine
    budget: int | None = None
    page_cache: bool = True
    fill: bool = False
    reads_back: bool = False


@dataclass(frozen=True)
class Settings:
    """Numbers of tokens. prompt, warm_up: before those that count. long_prompt: read last."""

    prompt: int
    warm_up: int
    tokens: int
    long_prompt: int
    rounds: int


@terminal.reports_errors
def streaming(
    scale: Annotated[
        int, typer.Option(metavar="N", help="Scout's widths divided by 1, 2, 4, 8 or 16.")
    ] = 4,
    layers: Annotated[int, typer.Option(metavar="N", min=1, help="All with experts.")] = 8,
    experts: Annotated[int, typer.Option(metavar="N", min=2, help="In each layer.")] = 32,
    bits: Annotated[int, typer.Option(metavar="N", help="Of all that is packed.")] = 4,
    budgets: Annotated[
        list[int] | None,
        typer.Option(
            "--budget",
            metavar="PERCENT",
            min=1,
            max=100,
            help="Of all experts' bytes; repeatable. Default: 10, 25, 50, 75, 100.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", min=1, help="That count.")] = 32,
    warm_up_tokens: Annotated[
        int, typer.Option("--warm-up-tokens", metavar="N", min=1, help="Generated before them.")
    ] = 32,
    long_prompt: Annotated[
        int, typer.Option("--long-prompt", metavar="N", min=1, help="Tokens of the prefill.")
    ] = 64,
    rounds: options.Rounds = 3,
    only: options.Only = None,
    python: options.Python = None,
    prelude: options.Prelude = None,
    json: options.Json = None,
) -> None:
    """Generate with experts streamed from the disk: tokens a second, hits, bytes, waits, memory.

    \b
    Example:
      python -m benchmarks streaming --budget 25 --rounds 5
    """
    outputs = options.Outputs(json, None)
    engines = _engines(only, python or (), prelude or ())
    packing = packing_of(bits)
    settings = Settings(8, warm_up_tokens, tokens, long_prompt, rounds)
    config = scaled_release("scout", scale, layers, experts, VOCABULARY)
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-benchmark-") as temporary:
        folder = Path(temporary)
        idle = options.ready_engines(engines, IMPORTS, folder)
        with terminal.status("Writing the model"):
            model = folder / "model"
            nbytes, dtype = _write_model(model, config, packing)
        ranges = expert_ranges(model)
        rows = table_rows([*idle], expert_bytes(ranges), len(ranges), budgets or BUDGETS)
        folders = {OURS: model}
        setup = {"model": describe(config, bits, dtype, nbytes, expert_bytes(ranges))}
        if any(engine.name == PEER for engine in idle):
            folders[PEER], setup[PEER] = _repack(next(e for e in idle if e.name == PEER), folder)
        runs, speeds = _run(rows, idle, folders, ranges, settings)
    found = Found(setup | _setup(settings), this_machine(), runs, speeds)
    print_found(found, RESIDENT)
    if outputs.json is not None:
        write_whole(outputs.json, (json_module.dumps(as_json(found), indent=2) + "\n").encode())


def table_rows(
    engines: Sequence[Engine], nbytes: int, count: int, budgets: Sequence[int]
) -> dict[str, Row]:
    """Label → row. nbytes, count: of all experts."""
    rows: dict[str, Row] = {}
    for engine in engines:
        rows[f"{engine.name}, all in memory"] = Row(engine)
        if engine.name == OURS:
            # Each has a slot, after MLX's buffers and what passes through took their shares.
            enough = (nbytes + 3 * nbytes // count) * BUFFER_SHARE // (BUFFER_SHARE - 1)
            rows[f"{OURS}, all in slots"] = Row(engine, enough, fill=True)
            rows[f"{OURS}, all in slots, reading back"] = Row(
                engine, enough, fill=True, reads_back=True
            )
        for budget, page_cache in itertools.product(budgets, (True, False)):
            how = "" if page_cache else ", no page cache"
            rows[f"{engine.name}, {budget}%{how}"] = Row(engine, nbytes * budget // 100, page_cache)
    return rows


def expert_bytes(ranges: ExpertRanges) -> int:
    return sum(one.nbytes for expert in ranges.values() for one in expert)


def describe(config: Mapping[str, Any], bits: int, dtype: str, total: int, experts: int) -> str:
    text = config["text_config"]
    return (
        f"random, {bits} bits and {dtype}, {text['num_hidden_layers']} layers of "
        f"{text['num_local_experts']} experts, hidden size {text['hidden_size']}, "
        f"{human_bytes(total)}, of which experts {human_bytes(experts)}"
    )


def _engines(only: str | None, pythons: Sequence[str], preludes: Sequence[str]) -> list[Engine]:
    named = choose_engines(only, pythons, preludes)
    engines = [engine for engine in named if engine.name in IMPORTS]
    if not engines:
        raise InputError(f"--only {only}: of these none streams experts")
    return engines


def _write_model(
    folder: Path, config: dict[str, Any], packing: Quantization | None
) -> tuple[int, str]:
    """Bytes, and the dtype of what is not packed: what this machine computes in."""
    import mlx.core as mx

    dtype = "float32" if mx.default_device() == mx.cpu else "bfloat16"
    return write_random_model(folder, config, recipe_of(packing, packing, dtype)), dtype


def _repack(engine: Engine, folder: Path) -> tuple[Path, str]:
    """The copy of the model that the peer's offload reads, and what it took, in words."""
    out = folder / "repacked"
    start = time.perf_counter()
    with terminal.status(f"{PEER} repacks the model"):
        run_measured(engine.command(REPACK, folder / "model", out), folder)
    seconds = time.perf_counter() - start
    copied = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    return out, f"reads a copy that it made in {seconds:.0f} s: {human_bytes(copied)} more on disk"


def _run(
    rows: Mapping[str, Row],
    idle: Mapping[Engine, Idle],
    folders: Mapping[str, Path],
    ranges: ExpertRanges,
    settings: Settings,
) -> tuple[Runs, list[dict[str, Speed]]]:
    speeds: list[dict[str, Speed]] = []
    told = vars(settings) | {"expert_bytes": expert_bytes(ranges) // len(ranges)}

    def run_once(turn: Engine) -> Figures:
        row = rows[turn.name]
        folder = folders[OURS if row.budget is None else row.engine.name]
        chosen = {key: getattr(row, key) for key in ("budget", "page_cache", "fill", "reads_back")}
        arguments = json_module.dumps(told | chosen | {"folder": str(folder)})
        files = sorted(folder.rglob("*.safetensors"))
        prepare_page_cache(files, "warm" if row.page_cache else "cold")
        usage = run_measured(turn.command(MEASURE % WAYS[row.engine.name], arguments), folder)
        above_idle = usage.peak_anonymous_bytes - idle[row.engine].memory.anonymous_bytes
        counts = json_module.loads(usage.output.splitlines()[-1])
        return derive(counts, settings.tokens) | {"anonymous_above_idle_bytes": above_idle}

    def read_and_run(turn: Engine) -> Figures:
        if turn.name == PLAIN_READS:
            for _ in range(READS_A_ROUND):
                speeds.append(plain_reads(folders[OURS], ranges, seed=len(speeds)))
            return {}
        return run_once(turn)

    turns = [replace(row.engine, name=label) for label, row in rows.items()]
    turns.append(Engine(PLAIN_READS))
    runs = run_rounds(turns, read_and_run, settings.rounds, warm_up=False, on_turn=terminal.note)
    del runs.figures[PLAIN_READS]
    return runs, speeds


def plain_reads(folder: Path, ranges: ExpertRanges, seed: int) -> dict[str, Speed]:
    """The model's files, whole and expert by expert, and experts by our reader."""
    files = sorted(folder.glob("*.safetensors"))
    some = some_of(ranges, READ_BYTES, seed)
    found: dict[str, Speed] = {}
    ways = {"": False} | ({", past the page cache": True} if can_pass_cache(files[0]) else {})
    for how, past_cache in ways.items():
        found[f"one block after the other{how}"] = read_sequentially(
            files, READ_BYTES, past_cache=past_cache
        )
        found[f"expert by expert{how}"] = read_experts(
            list(some.values()), readers=READERS, piece_bytes=PIECE_BYTES, past_cache=past_cache
        )
    found["our reader"] = read_with_store(folder, some, page_cache=True)
    found["our reader, no page cache"] = read_with_store(folder, some, page_cache=False)
    return found


def _setup(settings: Settings) -> dict[str, str]:
    return {
        "tokens": f"{settings.tokens} after a prompt of {settings.prompt} and "
        f"{settings.warm_up} that do not count; ids given, as frequent as words are",
        "prefill": f"{settings.long_prompt} tokens, afterwards in the same process",
        "page cache": "holds the model before a run; or, 'no page cache', nothing of it, and "
        "what is read is given up at once (the peer's files after every token)",
        "rounds": f"{settings.rounds}; a fresh process for each row, taking turns",
    }
