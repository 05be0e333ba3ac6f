"""Whatever a message quotes, it is one line of a bounded length without control characters."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import (
    MOST_CHARACTERS,
    CheckpointError,
    ConfigError,
    ImageError,
    Llama4Error,
    OutputError,
    PromptError,
    RunError,
    one_line,
)
from tests.commands import run_here

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202eevil\u2066\u2028\x00\x7f"


def safe(text: str) -> bool:
    return all(character == "\n" or character.isprintable() for character in text)


@pytest.mark.parametrize(
    "kind",
    [CheckpointError, ConfigError, ImageError, Llama4Error, OutputError, PromptError, RunError],
)
def test_every_error_escapes_and_cuts(kind: type[Llama4Error]) -> None:
    message = str(kind(f"a template says {HOSTILE * 1000}; remove it"))
    assert safe(message) and "\n" not in message
    assert "\\x1b]0;owned\\x07" in message and message.endswith("; remove it")
    assert len(message) == MOST_CHARACTERS
    assert str(kind(message)) == message


def test_ordinary_text_stays() -> None:
    for text in ("", "is 3, less than 4", "größer → 日本 🙂 \u200d", "a" * MOST_CHARACTERS):
        assert one_line(text) == text
    assert one_line("a\r\n\tb") == "a b"


def test_a_note_is_free_of_controls(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.note(f"{HOSTILE[:10]} says\nmore")
    terminal.unexpected(ValueError(HOSTILE * 10_000))
    said = capsys.readouterr().err
    assert "\x1b" not in said and "says\nmore" in said and len(said) < 20_000


@pytest.fixture
def model(tmp_path: Path, demo_folder: Path) -> Path:
    return Path(shutil.copytree(demo_folder, tmp_path / "model"))


def set_template(text: str) -> Callable[[Path], None]:
    return lambda model: (model / "chat_template.jinja").write_text(text)


def set_index(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def apply(model: Path) -> None:
        file = model / "model.safetensors.index.json"
        index = json.loads(file.read_text())
        change(index)
        file.write_text(json.dumps(index))

    return apply


def set_config(key: str, value: object) -> Callable[[Path], None]:
    def apply(model: Path) -> None:
        file = model / "config.json"
        config = json.loads(file.read_text())
        config.get("text_config", config)[key] = config[key] = value
        file.write_text(json.dumps(config))

    return apply


def in_python(text: str) -> str:
    return json.dumps(text)[1:-1].replace("\x7f", "\\x7f")


@pytest.mark.parametrize(
    "change",
    [
        set_template('{{ raise_exception("' + in_python(HOSTILE) + '") }}'),
        set_template('{{ raise_exception("x" * 1000000) }}'),
        set_template("{% " + HOSTILE + " %}"),
        set_index(lambda index: index["weight_map"].update({HOSTILE: "model.safetensors"})),
        set_index(lambda index: index["weight_map"].update(a=HOSTILE + "/b")),
        set_index(lambda index: index["weight_map"].update(a=HOSTILE)),
        set_index(lambda index: index["weight_map"].update({"b" * 100_000: "model.safetensors"})),
        set_config("model_type", HOSTILE),
        set_config("layer_types", [[HOSTILE]]),
        set_config("num_hidden_layers", [[1]]),
        set_config("num_hidden_layers", 10**12),
        set_config("hidden_size", 10**400),
        set_config("no_rope_layers", [2] * 100_000),
    ],
)
@pytest.mark.parametrize("command", ["ask", "inspect"])
def test_hostile_folders(model: Path, command: str, change: Callable[[Path], None]) -> None:
    """One line, or a right result for what the command does not look at."""
    change(model)
    words = ["ask", "hi", "--max-tokens", "1", "--model"] if command == "ask" else ["inspect"]
    result = run_here(*words, model)
    assert safe(result.stderr) and len(result.stderr) < 10_000
    assert "error: unexpected" not in result.stderr
    assert result.returncode == 0 or len(result.stderr.splitlines()) <= 1 + (command == "inspect")
