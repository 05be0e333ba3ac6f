"""`python -m benchmarks decode`: processes that stay, whose tokens are compared."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.decode import same_tokens
from benchmarks.harness.engines import OURS, Engine
from benchmarks.harness.process_memory import read_memory
from benchmarks.harness.resident import Resident
from benchmarks.harness.rounds import Runs
from mlx_llama4.errors import RunError
from tests.benchmarks.program import benchmark

CODE = """
import sys
print("some library's greeting")
said = []
def answer(question):
    if question == "fail":
        raise ValueError("it broke")
    said.append(question)
    print("working")
    return {"said": said, "given": sys.argv[1:]}
"""


def test_a_process_answers_again_and_again(tmp_path: Path) -> None:
    with Resident(Engine(OURS), CODE, (1, "b"), tmp_path) as process:
        assert process.ask(1) == {"said": [1], "given": ["1", "b"]}
        assert process.ask([2]) == {"said": [1, [2]], "given": ["1", "b"]}
        assert 0 < process.memory().anonymous_bytes < 100 * 10**6
        pid = process.pid
    assert read_memory(pid) is None


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with Resident(Engine(OURS), CODE, (), tmp_path) as process:
        for _ in range(2):
            with pytest.raises(RunError, match=r"^exit code 1: ValueError: it broke$"):
                process.ask("fail")
    with pytest.raises(RunError, match=r"^exit code 3$"):
        Resident(Engine(OURS), "import sys; sys.exit(3)", (), tmp_path)
    with pytest.raises(RunError, match=r"^cannot start /no/python: No such file"):
        Resident(Engine(OURS, "/no/python"), CODE, (), tmp_path)


def test_tokens_are_compared() -> None:
    runs = Runs({OURS: [], "mlx-lm": [], "mlx-vlm": []})
    tokens = {OURS: [1, 2, 3], "mlx-lm": [1, 2, 3], "mlx-vlm": [1, 5, 3]}
    said = same_tokens(tokens, runs)
    assert said == "the same as ours, greedily: mlx-lm 3 of 3, mlx-vlm 1 of 3"
    assert same_tokens({OURS: [1]}, Runs({OURS: []})).endswith(": no peer ran")


@pytest.mark.slow
def test_decode_from_end_to_end(tmp_path: Path) -> None:
    """Over a border between chunks; a peer that is not there is left out."""
    out = tmp_path / "a.json"
    result = benchmark(
        *("decode", "--preset", "tiny", "--prompt", 250, "--burst", 4, "--rounds", 3),
        *("--python", "mlx-vlm=/no/python", "--json", out),
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("mlx-vlm is left out (cannot start /no/python: ")
    assert "the same as ours, greedily: mlx-lm 16 of 16" in result.stdout
    report = json.loads(out.read_text())
    assert list(report["engines"]) == [OURS, "mlx-lm"] and not report["left_out"]
    for engine in report["engines"].values():
        assert len(engine["rounds"]) == 3
        figures = engine["median"]
        assert figures["share_of_memory"] > 0 and figures["share_of_one_row"] > 0
        assert 0 < figures["peak_bytes"] < figures["weight_bytes"] < figures["peak_resident_bytes"]
    rows = [line.split("  ")[1] for line in result.stdout.split("\n\n")[1].splitlines()]
    assert rows == [
        *("median of rounds", "tokens/s", "of the memory limit", "of the one-row limit"),
        *("CPU a token", "weights in memory", "peak memory above them", "peak RSS"),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["decode", "--preset", "huge"], "--preset huge: choose of tiny, small"),
        (["decode", "--only", "nobody"], "--only nobody: no such engine"),
        (["startup", "--preset", "huge"], "--preset huge: choose of tiny, small"),
        (["load", "--only", "nobody"], "--only nobody: no such engine"),
        (["limits", "--preset", "huge"], "--preset huge: choose of tiny, small"),
    ],
)
def test_bad_options_end_in_one_line(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and words in line
