"""`python -m benchmarks drafting`: answers that are given, with drafts and without."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def drafting(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "drafting", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)


@pytest.mark.slow
def test_drafting_from_end_to_end(tmp_path: Path) -> None:
    file = tmp_path / "drafting.json"
    result = drafting("--tokens", 30, "--rounds", 1, "--json", file)
    assert result.returncode == 0, result.stderr
    answers = json.loads(file.read_text())["answers"]
    assert set(answers) == {"the text again", "with names changed", "another"}
    again = answers["the text again"]
    assert again["off"][0]["drafted"] == 0
    assert again["ngram"][0]["accepted"] > 10


def test_bad_options_end_in_one_line() -> None:
    result = drafting("--preset", "huge")
    assert result.returncode == 2
    assert "--preset huge: choose of" in result.stderr
    assert "Traceback" not in result.stderr
