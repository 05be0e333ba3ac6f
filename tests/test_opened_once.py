"""One `ask` reads each of the folder's files once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_llama4.demo.questions import PICTURES

# Counted where Python opens files; MLX reads the weights itself.
COUNTING = """
import collections, json, os, sys

folder, counts = sys.argv[1], collections.Counter()

def count(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        path = os.fspath(arguments[0])
        if os.path.dirname(path) == folder:
            counts[os.path.basename(path)] += 1

def counted(owner, name, text=""):
    function = getattr(owner, name)
    def wrapper(*arguments, **options):
        counts[text + arguments[1] if text else name] += 1
        return function(*arguments, **options)
    setattr(owner, name, wrapper)

from mlx_llama4.checkpoint import open as opening, safetensors
from mlx_llama4.prompt import image, tokenizer
counted(opening, "match_tensors")
counted(safetensors, "read_header")
counted(image.ImageTiler, "tile")
counted(tokenizer.Tokenizer, "encode", "text: ")
sys.addaudithook(count)

from mlx_llama4.cli.main import app
assert not app(sys.argv[2:], standalone_mode=False)
print(json.dumps(counts))
"""
ONCE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def counts_of(folder: Path, *arguments: object, text: str | None = None) -> dict[str, int]:
    """File of the folder, or what is done with it → how often."""
    command = [sys.executable, "-c", COUNTING, str(folder), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, input=text, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_each_file_is_read_once(demo_folder: Path, command: str) -> None:
    question = ("What is in the image?", "--image", PICTURES / "star.png")
    counts = counts_of(
        demo_folder, command, *question * (command == "ask"), "-m", demo_folder, text="Hello\n"
    )
    shards = [path.name for path in demo_folder.glob("*.safetensors")]
    assert {name: counts[name] for name in (*ONCE, *shards)} == dict.fromkeys((*ONCE, *shards), 1)
    assert counts["match_tensors"] == 1
    assert counts["read_header"] == len(shards)
    assert counts.get("tile", 0) == (command == "ask")
    texts = {name: count for name, count in counts.items() if name.startswith("text: ")}
    assert texts and set(texts.values()) == {1}  # tokenised once


def test_streamed_experts_too(demo_folder: Path) -> None:
    """Each layer's expert reader opens the shards as well; their headers are read once."""
    counts = counts_of(demo_folder, "ask", "Hello", "-m", demo_folder, "--experts", "stream")
    assert {name: counts[name] for name in ONCE} == dict.fromkeys(ONCE, 1)
    assert (counts["match_tensors"], counts["read_header"]) == (1, 1)
