"""What version 0.1.0 writes, written by its own commands. README.md says how this is run."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from source import (
    ASKED,
    GREEDY,
    HERE,
    QUESTIONS,
    RECIPE,
    SESSION_QUESTION,
    config,
    write_source,
)

from mlx_llama4 import __version__
from mlx_llama4.demo.questions import CHECKPOINT, NOTES, PICTURES
from mlx_llama4.prompt.template_source import DEFAULT_TEMPLATE
from tests import tiny
from tests.screen import ENTER, Terminal

SLICES = 60  # of 93, when the conversion is stopped
MODEL = HERE / "model"
KEPT = ("text", "prompt_tokens", "cached_tokens", "generated_tokens", "finish_reason", "logprobs")

# Ctrl-C while the given slice is packed: the tiny model is converted too fast to be caught at it.
STOPPED = """
import sys
import mlx_llama4.convert.stream as stream
from mlx_llama4.cli.main import app
pack, left = stream.pack, [int(sys.argv.pop(1))]
def stopped(*arguments):
    left[0] -= 1
    if left[0] < 0:
        raise KeyboardInterrupt
    return pack(*arguments)
stream.pack = stopped
app(prog_name="mlx-llama4")
"""


def run(
    *arguments: object, code: int = 0, text: str = "", program: Any = ("-m", "mlx_llama4")
) -> str:
    result = subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        input=text, capture_output=True, text=True, check=False, cwd=HERE,
    )  # fmt: skip
    print("mlx-llama4", *arguments, "→", result.returncode)
    print(result.stderr, file=sys.stderr, end="")
    assert result.returncode == code
    return result.stdout


def write_side_files(folder: Path) -> Path:
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / name, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 1001}')
    (folder / "chat_template.jinja").write_text(DEFAULT_TEMPLATE)
    return folder


def write_session(home: Path) -> None:
    """A chat on a terminal that is left by /quit."""
    with Terminal(
        "chat", "--model", MODEL, *GREEDY, home=home, PYTHONPATH=str(Path.cwd())
    ) as terminal:
        terminal.until_asked()
        terminal.enter("My name is Ada.")
        terminal.enter("What is 7 plus 5?")
        terminal.type("/quit" + ENTER)
        assert terminal.until_done() == 0
    shutil.copytree(home / "state", HERE / "state")


def main() -> None:
    assert __version__ == "0.1.0"
    for path in HERE.iterdir():
        if path.is_dir() and path.name != "__pycache__":
            shutil.rmtree(path)
    shutil.copy(PICTURES / "wide.png", HERE)
    (HERE / "document.txt").write_text(NOTES)
    with tempfile.TemporaryDirectory() as scratch:
        source = write_source(Path(scratch) / "source", write_side_files(Path(scratch) / "side"))
        run("convert", source, MODEL, *RECIPE)
        run(SLICES, "convert", source, HERE / "stopped", *RECIPE, code=130, program=("-c", STOPPED))
        write_session(Path(scratch))
    document = ("cache", "document.txt", "--image", "wide.png", "--model", "model", "-o")
    run(*document, "document.safetensors")
    run(*document, "document_small.safetensors", "--small")
    run(*document, "document_8bit.safetensors", "--kv-bits", 8, "--kv-group-size", 32)
    typed = "wide.png What is this?\nMy name is Ada.\n/save conversation.safetensors\n"
    run("chat", "--model", "model", *GREEDY, text=typed)

    expected: dict[str, Any] = {"fingerprint": tiny.fingerprint(tiny.tensors(config()))}
    for name, question in QUESTIONS.items():
        answer = json.loads(run("ask", *question, "--model", "model", *ASKED))
        expected[name] = {key: answer[key] for key in KEPT}
    os.environ["XDG_STATE_HOME"] = str(HERE / "state")
    resumed = ("chat", "--resume", "--model", "model", *GREEDY)
    expected["session"] = {"text": run(*resumed, text=SESSION_QUESTION + "\n")}
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in expected.items())
    (HERE / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
