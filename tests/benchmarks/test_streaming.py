"""`python -m benchmarks streaming`: what follows from counts, plain reads, all of it when tiny."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.engines import OURS, Engine
from benchmarks.harness.machine import Machine
from benchmarks.harness.random_model import (
    packing_of,
    recipe_of,
    scaled_release,
    write_random_model,
)
from benchmarks.harness.rounds import Runs
from benchmarks.streaming.command import expert_bytes, table_rows
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
from benchmarks.streaming.report import Found, derive, speed_rows, token_rows
from mlx_llama4.checkpoint.safetensors import open_checkpoint
from mlx_llama4.offload.budget import LayerExperts, plan_slots
from tests.benchmarks.program import benchmark

COUNTS = {
    "decode": {
        "seconds": 2.0,
        "cpu_seconds": 3.0,
        "reading_seconds": 0.5,
        "disk_bytes": 400,
        "hits": 30,
        "misses": 10,
        "bytes_read": 1000,
        "waiting_seconds": 0.4,
        "read_back_seconds": 1.0,
        "read_backs": 40,
    },
    "prefill": {"seconds": 3.0, "bytes_read": 5000},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers of four experts."""
    folder = tmp_path_factory.mktemp("random") / "model"
    config = scaled_release("scout", 16, 4, experts=4, vocabulary=4096)
    recipe = recipe_of(packing_of(4), packing_of(4), "float32")
    write_random_model(folder, config, recipe, shard_bytes=4_000_000)
    return folder


@pytest.fixture(scope="module")
def ranges(model: Path) -> ExpertRanges:
    return expert_ranges(model)


def test_ranges_are_the_experts_bytes(model: Path, ranges: ExpertRanges) -> None:
    assert list(ranges) == [(layer, expert) for layer in range(4) for expert in range(4)]
    tensors = open_checkpoint(model).tensors
    experts = {name: one for name, one in tensors.items() if ".feed_forward.experts." in name}
    assert expert_bytes(ranges) == sum(one.nbytes for one in experts.values())
    up = experts["language_model.model.layers.2.feed_forward.experts.up_proj.scales"]
    (found,) = [one for one in ranges[2, 3] if one.start == up.offset + 3 * up.nbytes // 4]
    assert (found.file, found.nbytes) == (up.file, up.nbytes // 4)


def test_some_experts_in_an_order_of_their_own(ranges: ExpertRanges) -> None:
    one = expert_bytes(ranges) // len(ranges)
    some = some_of(ranges, 3 * one, seed=0)
    assert len(some) == 3 and all(ranges[key] == places for key, places in some.items())
    assert list(some_of(ranges, 3 * one, seed=1)) != list(some)
    everything = list(some_of(ranges, 10**12, seed=0))
    assert everything != sorted(everything) == list(ranges)


@pytest.mark.parametrize("past_cache", [False, True])
def test_plain_reads_read_everything(
    model: Path, ranges: ExpertRanges, monkeypatch: pytest.MonkeyPatch, past_cache: bool
) -> None:
    """What lands in memory is what is in the files, to the last byte of the last one."""
    seen = bytearray()
    preadv = os.preadv

    def noting(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = preadv(descriptor, buffers, offset)
        seen.extend(buffers[0][:count])
        return count

    monkeypatch.setattr(os, "preadv", noting)
    files = sorted(model.glob("*.safetensors"))
    total = sum(file.stat().st_size for file in files)
    assert len(files) > 1
    if past_cache and not can_pass_cache(files[0]):
        pytest.skip("this file system has no O_DIRECT")
    seen.clear()
    whole = read_sequentially(files, 10**12, past_cache=past_cache)
    assert whole.nbytes == total and whole.seconds > 0
    assert bytes(seen) == b"".join(file.read_bytes() for file in files)
    seen.clear()
    one = ranges[3, 3]
    speed = read_experts([one], readers=1, piece_bytes=2**16, past_cache=past_cache)
    assert speed.nbytes == sum(part.nbytes for part in one)
    for part in one:
        with part.file.open("rb") as stream:
            stream.seek(part.start)
            assert stream.read(part.nbytes) in seen


def test_our_reader_reads_the_same(model: Path, ranges: ExpertRanges) -> None:
    for page_cache in (True, False):
        speed = read_with_store(model, ranges, page_cache)
        assert speed.nbytes == expert_bytes(ranges)


def test_rows_and_their_budgets() -> None:
    """Two engines; the slots that hold all of ours do, and nothing else does."""
    ours, peer = Engine(OURS), Engine("mlx-vlm")
    rows = table_rows([ours, peer], 64_000, 64, [10, 100])
    assert list(rows) == [
        "ours, all in memory",
        "ours, all in slots",
        "ours, all in slots, reading back",
        "ours, 10%",
        "ours, 10%, no page cache",
        "ours, 100%",
        "ours, 100%, no page cache",
        "mlx-vlm, all in memory",
        "mlx-vlm, 10%",
        "mlx-vlm, 10%, no page cache",
        "mlx-vlm, 100%",
        "mlx-vlm, 100%, no page cache",
    ]
    assert rows["ours, all in memory"].budget is None
    assert rows["mlx-vlm, 10%, no page cache"].budget == 6400
    assert not rows["mlx-vlm, 10%, no page cache"].page_cache
    layers = [LayerExperts(8, 1000, "packing")] * 8
    enough = rows["ours, all in slots"]
    assert enough.fill and plan_slots(layers, enough.budget).slots == (8,) * 8
    assert plan_slots(layers, rows["ours, 100%"].budget).slots != (8,) * 8


def test_what_follows_from_counts() -> None:
    found = derive(COUNTS, tokens=10)
    assert found == pytest.approx(
        {
            "tokens_per_second": 5.0,
            "seconds_a_token": 0.2,
            "cpu_seconds_a_token": 0.3,
            "disk_bytes_a_token": 40,
            "prefill_seconds": 3.0,
            "hit_rate": 0.75,
            "bytes_a_token": 100,
            "reading_share": 0.25,
            "waiting_share": 0.2,
            "read_back_share": 0.5,
            "rest_share": 0.3,
            "read_backs_a_token": 4,
            "prefill_bytes_read": 5000,
            "reading_bytes_per_second": 2000,
        }
    )


def test_what_was_not_counted_is_not_there() -> None:
    decode = {"seconds": 2.0, "cpu_seconds": 3.0, "reading_seconds": 0.0, "disk_bytes": 0}
    resident = derive({"decode": decode, "prefill": {"seconds": 3.0}}, tokens=10)
    assert set(resident) == {
        *("tokens_per_second", "seconds_a_token", "cpu_seconds_a_token"),
        *("disk_bytes_a_token", "prefill_seconds"),
    }
    all_held = COUNTS["decode"] | {"bytes_read": 0, "reading_seconds": 0.0, "misses": 0}
    found = derive(COUNTS | {"decode": all_held}, tokens=10)
    assert found["hit_rate"] == 1 and "reading_bytes_per_second" not in found


def test_tables() -> None:
    rounds = [derive(COUNTS, tokens=10) | {"anonymous_above_idle_bytes": 10**9}] * 2
    resident = [{"tokens_per_second": 10.0, "disk_bytes_a_token": 0}] * 2
    runs = Runs({"all": resident, "10%": rounds}, {})
    speeds = [{"plain": Speed(2 * 10**9, 1.0, 0.5)}, {"plain": Speed(4 * 10**9, 1.0, 0.5)}]
    found = Found({}, Machine("a processor", 2, 8 * 10**9, "an OS"), runs, speeds)
    head, first, second = token_rows(found, "all")
    assert head[:5] == (
        "median of rounds",
        "tokens/s",
        "of that in memory",
        "processor a token",
        "hits",
    )
    assert first[:5] == ("all", "10.00", "–", "–", "–")
    assert second == (
        *("10%", "5.00", "0.50 (0.50 to 0.50)", "0.30 s", "75%", "100 B", "40 B"),
        *("25%", "2 KB", "20%", "50%", "30%"),
    )
    assert speed_rows(speeds)[1] == ("plain", "3 GB", "50%")


@pytest.mark.slow
def test_from_end_to_end(tmp_path: Path) -> None:
    """Ours at two budgets: fewer bytes a token and fewer misses with more memory."""
    out = tmp_path / "a.json"
    result = benchmark(
        *("streaming", "--only", OURS, "--scale", 16, "--layers", 4, "--experts", 4),
        *("--budget", 50, "--budget", 100, "--tokens", 6, "--warm-up-tokens", 4),
        *("--long-prompt", 20, "--rounds", 1, "--json", out),
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(out.read_text())
    rows = {label: rounds[0] for label, rounds in report["rows"].items()}
    assert not report["left_out"] and len(rows) == 7
    assert {len(speeds) for speeds in report["plain_reads"]} == {6}
    assert "hit_rate" not in rows["ours, all in memory"]
    assert rows["ours, all in slots"]["hit_rate"] == 1
    assert rows["ours, all in slots"]["read_backs_a_token"] == 0
    assert rows["ours, all in slots, reading back"]["read_backs_a_token"] == pytest.approx(4, 0.2)
    assert rows["ours, 50%"]["hit_rate"] <= rows["ours, 100%"]["hit_rate"]
    assert rows["ours, 50%"]["bytes_a_token"] > 0
    assert np.isclose(
        rows["ours, 50%"]["bytes_a_token"], rows["ours, 50%, no page cache"]["bytes_a_token"]
    )
    tables = result.stdout.split("\n\n")
    assert tables[0].startswith("experts streamed from the disk\n")
    assert len(tables[2].splitlines()) == len(tables[3].strip().splitlines()) == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "mlx-lm"], "--only mlx-lm: it does not stream experts"),
        (["--scale", 3], "--scale 3: choose of 1, 2, 4, 8, 16"),
        (["--bits", 9], "9 bits are not supported"),
    ],
)
def test_bad_options_end_in_one_line(arguments: list[object], words: str) -> None:
    result = benchmark("streaming", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and words in line
