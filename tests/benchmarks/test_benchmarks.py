"""The benchmark runner: what it measures is there, and what it says follows from it."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import chart, page_cache
from benchmarks.harness.engines import OURS, Engine, Idle, choose_engines, measure_idle
from benchmarks.harness.machine import Machine, this_machine
from benchmarks.harness.outputs import Outputs
from benchmarks.harness.process import run_measured
from benchmarks.harness.process_memory import IS_MAC, Memory, read_memory
from benchmarks.harness.ratios import Ratio, ratio_of_medians
from benchmarks.harness.report import Metric, Report, as_json, print_report, show_ratio, table_rows
from benchmarks.harness.rounds import Runs, run_rounds, turns
from mlx_llama4.errors import InputError, OutputError, RunError

MB = 2**20
A, B, C = Engine(OURS), Engine("mlx-lm"), Engine("mlx-vlm")
SECONDS = Metric("seconds", "wall", lambda seconds: f"{seconds:.1f} s")
SPEED = Metric("tokens", "speed", lambda value: f"{value:.0f}")


def report(figures: dict[str, list[float]], failures: dict[str, str] | None = None) -> Report:
    idle = Idle(0.5, Memory(40 * 10**6, 20 * 10**6), {"Python": "3.12.1", "mlx": "0.32.4"})
    rounds = {
        name: [{"seconds": value, "tokens": 100 / value} for value in values]
        for name, values in figures.items()
    }
    return Report(
        subject="a subject",
        setup={"source": "a source"},
        machine=Machine("a processor", 2, 8 * 10**9, "an OS"),
        idle=dict.fromkeys((*figures, *(failures or ())), idle),
        metrics=(SECONDS, SPEED),
        runs=Runs(rounds, failures or {}),
    )


def test_ratio_of_constant_rounds_is_certain() -> None:
    assert ratio_of_medians([2, 2, 2], [4, 4, 4]) == Ratio(0.5, 0.5, 0.5)


@pytest.mark.slow
def test_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    """95% of intervals over 25 rounds; a bootstrap of so few is a little too narrow."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        ours, peer = random.normal(1, 0.1, 25), random.normal(2, 0.2, 25)
        ratio = ratio_of_medians(ours, peer)
        held += ratio.low <= 0.5 <= ratio.high
    assert 88 <= held <= 99


def test_rounds_are_paired() -> None:
    """A slow minute slows both: their ratio is certain though their seconds are not."""
    seconds = [1.0, 3.0, 2.0, 7.0, 5.0]
    paired = ratio_of_medians(seconds, [2 * second for second in seconds])
    assert paired == Ratio(0.5, 0.5, 0.5)
    crossed = ratio_of_medians(seconds, [4.0, 2.0, 14.0, 6.0, 10.0])
    assert crossed.low < 0.4 and crossed.high > 0.6


def test_interval_repeats_and_follows_the_seed() -> None:
    ours, peer = [1.0, 1.3, 1.1, 1.7], [2.0, 2.9, 2.2, 2.1]
    assert ratio_of_medians(ours, peer) == ratio_of_medians(ours, peer)
    assert ratio_of_medians(ours, peer).value == pytest.approx(1.2 / 2.15)


def test_ratio_without_interval_and_without_ratio() -> None:
    assert ratio_of_medians([3], [4]) == Ratio(0.75, None, None)
    assert ratio_of_medians([1, 2], [0, 0]) is None
    assert show_ratio(Ratio(0.75, None, None)) == "0.75"
    assert show_ratio(Ratio(0.5, 0.25, 1)) == "0.50 (0.25 to 1.00)"
    assert show_ratio(None) == "–"


def test_turns_rotate() -> None:
    assert turns([A, B, C], 4) == [[A, B, C], [B, C, A], [C, A, B], [A, B, C]]
    assert turns([A], 2) == [[A], [A]]


def test_rounds_run_in_turns_and_forget_the_warm_up() -> None:
    seen: list[str] = []

    def run_once(engine: Engine) -> dict[str, float]:
        seen.append(engine.name)
        return {"seconds": len(seen)}

    runs = run_rounds([A, B], run_once, rounds=2, warm_up=True)
    assert seen == [OURS, "mlx-lm", "mlx-lm", OURS, OURS, "mlx-lm"]
    assert runs.figures == {
        OURS: [{"seconds": 4}, {"seconds": 5}],
        "mlx-lm": [{"seconds": 3}, {"seconds": 6}],
    }


def test_a_peer_that_fails_is_left_out_and_ours_ends_the_run() -> None:
    failing = "mlx-lm"
    seen: list[str] = []

    def run_once(engine: Engine) -> dict[str, float]:
        seen.append(engine.name)
        if engine.name == failing:
            raise RunError("killed by signal 9")
        return {"seconds": 1}

    runs = run_rounds([A, B], run_once, rounds=3, warm_up=False)
    assert runs.failures == {"mlx-lm": "killed by signal 9"}
    assert runs.figures == {OURS: [{"seconds": 1}] * 3}
    assert seen.count("mlx-lm") == 1
    failing = OURS
    with pytest.raises(RunError, match="ours: killed by signal 9"):
        run_rounds([A, B], run_once, rounds=3, warm_up=False)


HOLD = "import time; held = bytearray(b'x') * ({mb} * 2**20); time.sleep(0.1)"


MAP = """\
import mmap, time
file = open("big", "rb")
mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
sum(mapped[::4096])
time.sleep(0.1)
"""


@pytest.mark.parametrize("mb", [64, 160])
def test_peak_memory_is_seen_though_it_is_given_back(tmp_path: Path, mb: int) -> None:
    idle = measure_idle(A, "time", tmp_path)
    usage = run_measured(A.command(HOLD.format(mb=mb) + "; del held"), tmp_path)
    above = usage.peak_anonymous_bytes - idle.memory.anonymous_bytes
    assert (mb - 2) * MB < above < (mb + 6) * MB
    assert usage.peak_resident_bytes >= usage.peak_anonymous_bytes


@pytest.mark.skipif(IS_MAC, reason="macOS counts mapped files elsewhere")
def test_mapped_files_are_resident_but_not_anonymous(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * (64 * MB))
    usage = run_measured(A.command(MAP), tmp_path)
    assert usage.peak_resident_bytes > 64 * MB
    assert usage.peak_anonymous_bytes < 32 * MB


def test_what_the_runner_holds_is_not_counted(tmp_path: Path) -> None:
    """ru_maxrss of a child starts at its parent's on Linux: that of a runner with a big source."""
    held = bytearray(b"x") * (300 * MB)
    usage = run_measured(A.command("pass"), tmp_path)
    assert usage.peak_resident_bytes < 100 * MB
    assert len(held) == 300 * MB


def test_seconds_and_output(tmp_path: Path) -> None:
    usage = run_measured(
        A.command("import sys, time; time.sleep(0.3); print(sys.argv)", 1), tmp_path
    )
    assert 0.3 < usage.seconds < 5
    assert 0 < usage.cpu_seconds < usage.seconds
    assert usage.output.strip() == "['-c', '1']"
    busy = run_measured(A.command("import time\nwhile time.process_time() < 0.4: pass"), tmp_path)
    assert 0.4 <= busy.cpu_seconds < 1


def test_a_failed_process_is_told_by_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^exit code 3: it broke$"):
        run_measured(
            A.command("import sys; print('it broke', file=sys.stderr); sys.exit(3)"), tmp_path
        )
    with pytest.raises(RunError, match=r"^killed by signal 9$"):
        run_measured(A.command("import os; os.kill(os.getpid(), 9)"), tmp_path)


def test_an_ended_process_has_no_memory() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    assert read_memory(os.getpid()).anonymous_bytes > 0
    process.wait()
    assert read_memory(process.pid) is None


def test_idle_process_imports_and_waits(tmp_path: Path) -> None:
    plain = measure_idle(A, "time", tmp_path)
    heavy = measure_idle(
        replace(A, prelude="held = bytes(range(256)) * (64 * 4096)"), "time", tmp_path
    )
    assert heavy.memory.anonymous_bytes - plain.memory.anonymous_bytes > 60 * MB
    assert plain.versions["Python"].startswith("3.")
    assert plain.versions["mlx-llama4"]
    assert 0 < plain.seconds < 10


def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No module named 'no_such_module'"):
        measure_idle(A, "no_such_module", tmp_path)
    with pytest.raises(RunError, match="cannot start /no/such/python: No such file"):
        measure_idle(Engine(OURS, "/no/such/python"), "time", tmp_path)


def test_engines_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert [engine.name for engine in choose_engines(None, [], [])] == [OURS, "mlx-lm", "mlx-vlm"]
    chosen = choose_engines("mlx-vlm,ours", ["mlx-vlm=env/python"], ["mlx-vlm=a = 1"])
    assert chosen == [A, Engine("mlx-vlm", f"{tmp_path}/env/python", "a = 1")]
    with pytest.raises(InputError, match="--only mlx_lm: no such engine; there are ours, mlx-lm"):
        choose_engines("ours,mlx_lm", [], [])
    with pytest.raises(InputError, match="--python peer: no such engine"):
        choose_engines(None, ["peer=python"], [])
    with pytest.raises(InputError, match="--prelude mlx-lm: write NAME=VALUE"):
        choose_engines(None, [], ["mlx-lm"])


def test_table_has_a_ratio_beside_each_peer() -> None:
    rows = table_rows(report({OURS: [1, 2, 3], "mlx-lm": [4, 4, 4], "mlx-vlm": [2, 4, 6]}))
    assert rows == [
        ("median of rounds", OURS, "mlx-lm", "ours / mlx-lm", "mlx-vlm", "ours / mlx-vlm"),
        ("wall", "2.0 s", "4.0 s", "0.50 (0.25 to 0.75)", "4.0 s", "0.50 (0.50 to 0.50)"),
        ("speed", "50", "25", "2.00 (1.33 to 4.00)", "25", "2.00 (2.00 to 2.00)"),
    ]
    assert table_rows(report({OURS: [1]}))[0] == ("one round", OURS)
    assert table_rows(report({"mlx-lm": [1]}))[1] == ("wall", "1.0 s", "–")


def test_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report({OURS: [1.5], "mlx-lm": [300.25]}, {"mlx-vlm": "killed by signal 9"}))
    text = capsys.readouterr().out
    head, table = text.split("\n\n")
    assert head.splitlines()[0] == "a subject"
    assert "  machine  a processor, 2 cores, 8 GB, an OS" in head
    assert "  mlx-vlm  left out: killed by signal 9" in head
    assert "mlx 0.32.4, Python 3.12.1; imported in 0.50 s, then 20 MB anonymous" in head
    assert table.splitlines() == [
        "  one round   ours   mlx-lm  ours / mlx-lm",
        "  wall       1.5 s  300.2 s           0.00",
        "  speed         67        0         200.17",
    ]


def test_json_keeps_every_round() -> None:
    figures = {OURS: [1.0, 2.0], "mlx-lm": [4.0, 5.0]}
    found = json.loads(json.dumps(as_json(report(figures, {"mlx-vlm": "no"}))))
    assert found.keys() == {"subject", "date", "setup", "machine", "engines", "left_out"}
    assert found["machine"].keys() == {"processor", "cores", "memory_bytes", "system"}
    ours, peer = found["engines"][OURS], found["engines"]["mlx-lm"]
    assert ours.keys() == {"versions", "idle", "rounds", "median"}
    assert peer.keys() == ours.keys() | {"ours_over_this"}
    assert [entry["seconds"] for entry in ours["rounds"]] == [1.0, 2.0]
    assert ours["median"]["seconds"] == statistics.median([1.0, 2.0])
    assert ours["idle"]["anonymous_bytes"] == 20 * 10**6
    assert peer["ours_over_this"]["seconds"]["value"] == pytest.approx(1.5 / 4.5)
    assert found["left_out"] == {"mlx-vlm": "no"}


def test_outputs_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match="is not a folder; create it first"):
        Outputs(tmp_path / "absent" / "a.json", None)
    with pytest.raises(OutputError, match="is a folder; name a file"):
        Outputs(tmp_path, None)
    monkeypatch.setattr(chart.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--png needs matplotlib; install it"):
        Outputs(None, tmp_path / "a.png")


@pytest.mark.peers
def test_chart_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the peers extra")
    chart.write_chart(report({OURS: [1, 2], "mlx-lm": [3, 4]}), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_page_cache_state_follows_size(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = this_machine().memory_bytes
    assert page_cache.page_cache_of(memory // 4, cold=False) == "warm"
    expected = "cold" if hasattr(os, "posix_fadvise") else "unknown"
    assert page_cache.page_cache_of(memory, cold=False) == expected
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    assert page_cache.page_cache_of(memory, cold=False) == "unknown"
    with pytest.raises(InputError, match="--cold needs Linux"):
        page_cache.page_cache_of(0, cold=True)
