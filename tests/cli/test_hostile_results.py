"""Results on standard output are as safe to show as messages are."""

import json
import shutil
from pathlib import Path

import pytest

from mlx_llama4.cli.console import terminal
from mlx_llama4.demo.questions import CHECKPOINT
from tests.commands import run_here

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b\u202efake\ud800"


def test_a_line_is_free_of_controls(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.line(f"a\tb\n{HOSTILE} é🦙")
    shown = capsys.readouterr().out
    assert shown == ("a\tb\n\\u001b]0;owned\\u0007\\u001b[2J\\u009b\\u202efake\\ud800 é🦙\n")


def test_json_keeps_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.line(json.dumps({"a": HOSTILE}, ensure_ascii=False))
    shown = capsys.readouterr().out
    assert shown.rstrip("\n").isprintable()
    assert json.loads(shown) == {"a": HOSTILE}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Below a folder whose name would act on a terminal."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "\x1b[2J\u202efake" / "model"))


def safe(text: str) -> bool:
    return all(line.replace("\t", " ").isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("words", [["inspect"], ["inspect", "--verify"], ["plan"]])
def test_names_of_folders(model: Path, words: list[str]) -> None:
    result = run_here(words[0], model, *words[1:])
    assert "fake" in result.stdout and safe(result.stdout) and safe(result.stderr)


@pytest.mark.parametrize("value", [HOSTILE, "a" * 100_000, HOSTILE * 10_000])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_format_s_name(model: Path, value: str, as_json: bool) -> None:
    file = model / "config.json"
    config = json.loads(file.read_text())
    config.pop("quantization", None)
    config["quantization_config"] = {"quant_method": value}
    file.write_text(json.dumps(config))
    result = run_here("inspect", model, *["--json"] * as_json)
    assert safe(result.stdout) and safe(result.stderr)
    assert as_json or max(map(len, result.stdout.split("\n"))) <= 2000
