"""`python -m benchmarks startup` and `load`: commands on a terminal, and plain reads."""

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks.harness import on_terminal
from benchmarks.harness.engines import OURS
from benchmarks.harness.on_terminal import run_until_shown
from benchmarks.load import read_plainly
from mlx_llama4.errors import RunError
from tests.benchmarks.program import benchmark

# Asks as our chat does, and goes on only when it is answered.
ASKING = """
import os, sys, termios, tty
assert os.get_terminal_size() == (80, 24) and sys.stdin.isatty()
tty.setcbreak(0)
for question, answer in ((b"\\x1b[c", b"\\x1b[?62c"), (b"\\x1b[6n", b"\\x1b[1;1R")):
    os.write(1, b"loading\\n" + question)
    assert os.read(0, len(answer)) == answer
held = bytearray(b"x") * (30 * 2**20)
print("\\x1b[1mwhat\\x1b[0m now", end="? ", flush=True)
sys.stdin.read()
"""


def until(text: str, code: str, folder: Path) -> on_terminal.Shown:
    return run_until_shown((sys.executable, "-c", code), text, folder, os.environ)


def test_a_command_on_a_terminal(tmp_path: Path) -> None:
    """Colours do not hide what is waited for."""
    shown = until("what now? ", ASKING, tmp_path)
    assert shown.seconds > 0 and shown.cpu_seconds > 0
    assert 30 * 2**20 < shown.anonymous_bytes <= shown.peak_resident_bytes < 200 * 2**20


def test_a_command_that_ends_without_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=r"^no prompt: it broke$"):
        until("> ", "print('reading'); import sys; sys.exit('it broke')", tmp_path)
    with pytest.raises(RunError, match=r"^cannot start /no/python: No such file"):
        run_until_shown(("/no/python",), "> ", tmp_path, os.environ)
    monkeypatch.setattr(on_terminal, "LONGEST_SECONDS", 0.2)
    with pytest.raises(RunError, match=r"^no prompt"):
        until("> ", "import time; time.sleep(60)", tmp_path)


def test_files_are_read_plainly(tmp_path: Path) -> None:
    for name, size in (("a", 0), ("b", 5_000_001)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert read_plainly(sorted(tmp_path.iterdir())) > 0


@pytest.mark.slow
def test_startup_and_load_from_end_to_end(tmp_path: Path) -> None:
    """A peer that is not there is left out in one line."""
    absent = ("--python", "mlx-vlm=/no/python", "--only", f"{OURS},mlx-vlm")
    for subject, keys in (
        ("startup", {"seconds", "help_seconds", "anonymous_bytes"}),
        ("load", {"seconds", "plain_over_this", "weight_bytes", "process_bytes"}),
    ):
        out = tmp_path / "a.json"
        result = benchmark(subject, "--preset", "tiny", "--rounds", 1, *absent, "--json", out)
        assert result.returncode == 0, result.stderr
        assert result.stderr.startswith("mlx-vlm is left out (cannot start /no/python: ")
        report = json.loads(out.read_text())
        assert list(report["engines"]) == [OURS]
        (figures,) = report["engines"][OURS]["rounds"]
        assert keys < figures.keys() and min(figures.values()) > 0
    assert 30e6 < figures["weight_bytes"] < 40e6
