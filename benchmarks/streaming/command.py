"""The command: a random model, each row of the table in processes of its own, rows taking turns.

Plain reads of the same files take turns too; they are the limit.
"""

import itertools
import json as json_module
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine
from benchmarks.harness.machine import this_machine
from benchmarks.harness.measuring import Bench, measuring
from benchmarks.harness.page_cache import prepare_page_cache
from benchmarks.harness.presets import unpacked_dtype
from benchmarks.harness.process import run_measured
from benchmarks.harness.random_model import (
    packing_of,
    recipe_of,
    scaled_release,
    write_random_model,
)
from benchmarks.harness.rounds import Figures, Runs, run_rounds
from benchmarks.streaming.disk import (
    ExpertRanges,
    Speed,
    can_pass_cache,
    expert_ranges,
    read_experts,
    read_sequentially,
    some_of,
)
from benchmarks.streaming.reader import read_with_store
from benchmarks.streaming.report import Found, as_json, derive, print_found
from mlx_llama4.cli.console import terminal
from mlx_llama4.offload.budget import BUFFER_SHARE
from mlx_llama4.offload.expert_store import PIECE_BYTES, READERS
from mlx_llama4.units import human_bytes

PEER = "mlx-vlm"
IMPORTS = {
    OURS: "mlx_llama4.opening, mlx_llama4.generation.generate",
    PEER: "mlx_vlm.utils, mlx_vlm.generate",
}
BUDGETS = (10, 25, 50, 75, 100)  # percent of all experts' bytes
RESIDENT = f"{OURS}, all in memory"
PLAIN_READS = "plain reads"  # take their turn among the rows
VOCABULARY = 4096
READ_BYTES = 10**9  # of each plain read, or all
READS_A_ROUND = 3  # disks are less steady than processors


@dataclass(frozen=True)
class Row:
    """What a process is told."""

    engine: Engine
    budget: int | None = None  # bytes for experts; None: all in memory, not streamed
    page_cache: bool = True  # whether the system may keep what was read
    fill: bool = False  # read experts for all slots first
    reads_back: bool = False  # read the router's choice back though no expert can be missing


@dataclass(frozen=True)
class Settings:
    """Numbers of tokens, and of rounds."""

    prompt: int
    warm_up: int  # generated after the prompt; they do not count
    tokens: int  # generated after those
    long_prompt: int  # read last
    rounds: int


@terminal.reports_errors
def streaming(
    scale: Annotated[
        int, typer.Option(metavar="N", help="Divide Scout's widths by 1, 2, 4, 8 or 16.")
    ] = 4,
    layers: Annotated[int, typer.Option(metavar="N", min=1, help="Layers, all with experts.")] = 8,
    experts: Annotated[int, typer.Option(metavar="N", min=2, help="Experts in each layer.")] = 32,
    bits: Annotated[int, typer.Option(metavar="N", help="Bits of all that is packed.")] = 4,
    budgets: Annotated[
        list[int] | None,
        typer.Option(
            "--budget",
            metavar="PERCENT",
            min=1,
            max=100,
            help="A share of all experts' bytes; repeatable. Default: 10, 25, 50, 75, 100.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens that count.")] = 32,
    warm_up_tokens: Annotated[
        int,
        typer.Option("--warm-up-tokens", metavar="N", min=1, help="Tokens generated before them."),
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
    packing = packing_of(bits)
    settings = Settings(8, warm_up_tokens, tokens, long_prompt, rounds)
    config = scaled_release("scout", scale, layers, experts, VOCABULARY)
    without = "it does not stream experts"
    with measuring(IMPORTS, only, python, prelude, json, others=without) as bench:
        with terminal.status("Writing the model"):
            model = bench.folder / "model"
            nbytes = write_random_model(
                model, config, recipe_of(packing, packing, unpacked_dtype())
            )
        ranges = expert_ranges(model)
        rows = table_rows(bench.engines, expert_bytes(ranges), len(ranges), budgets or BUDGETS)
        folders = {OURS: model}
        setup = {"model": describe(config, bits, nbytes, expert_bytes(ranges))}
        for engine in bench.engines:
            if engine.name == PEER:
                folders[PEER], setup[PEER] = _repack(engine, bench.folder)
        runs, speeds = _run(bench, rows, folders, ranges, settings)
        found = Found(setup | _setup(settings), this_machine(), runs, speeds)
        print_found(found, RESIDENT)
        bench.outputs.write_json(as_json(found))


def table_rows(
    engines: Sequence[Engine], nbytes: int, count: int, budgets: Sequence[int]
) -> dict[str, Row]:
    """Label → row. nbytes: of all experts; count: how many there are."""
    rows: dict[str, Row] = {}
    for engine in engines:
        rows[f"{engine.name}, all in memory"] = Row(engine)
        if engine.name == OURS:
            # A slot for each, after the shares of MLX's buffers and of experts that pass through.
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


def describe(config: Mapping[str, Any], bits: int, total: int, experts: int) -> str:
    """total, experts: bytes."""
    text = config["text_config"]
    return (
        f"random, {bits} bits and {unpacked_dtype()}, {text['num_hidden_layers']} layers of "
        f"{text['num_local_experts']} experts, hidden size {text['hidden_size']}, "
        f"{human_bytes(total)}, of which experts {human_bytes(experts)}"
    )


def _repack(engine: Engine, folder: Path) -> tuple[Path, str]:
    """Make the copy of the model that the peer's offload reads; say in words what that took."""
    out = folder / "repacked"
    start = time.perf_counter()
    with terminal.status(f"{PEER} repacks the model"):
        run_measured(engine.run("repack", folder / "model", out), folder)
    seconds = time.perf_counter() - start
    copied = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    return out, f"reads a copy that it made in {seconds:.0f} s: {human_bytes(copied)} more on disk"


def _run(
    bench: Bench,
    rows: Mapping[str, Row],
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
        usage = run_measured(row.engine.run("streaming", arguments), folder)
        idle = bench.idle[row.engine].memory.anonymous_bytes
        return derive(usage.result, settings.tokens) | {
            "anonymous_above_idle_bytes": usage.peak_anonymous_bytes - idle
        }

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
    """Read the model's files whole and expert by expert, and experts with our reader."""
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
