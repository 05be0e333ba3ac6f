"""`mlx-llama4 compare`: its table, its JSON, and how it says no."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.checkpoint.open import open_source
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import CHECKPOINT, NOTES, PICTURES
from mlx_llama4.errors import CheckpointError, ImageError, PromptError, RunError
from mlx_llama4.evaluation.comparison import check_comparable, compare
from mlx_llama4.prompt.processor import Processor
from mlx_llama4.prompt.tokenizer import Tokenizer, check_same_vocabulary
from mlx_llama4.prompt.windows import image_windows, text_windows
from tests import tiny
from tests.commands import ENVIRONMENT, refused, run_here
from tests.evaluation.windows import windows_of
from tests.golden import cases


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text(NOTES)
    return path


def test_table(demo_folder: Path, notes: Path) -> None:
    star = PICTURES / "star.png"
    result = run_here("compare", CHECKPOINT, demo_folder, "--text", notes, "--image", star)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert re.fullmatch(rf"A: {CHECKPOINT}, 7\.71 MB \(Hugging Face layout, BF16\)", lines[0])
    assert re.fullmatch(
        rf"B: {demo_folder}, 4\.71 MB \(MLX layout, 8 bits, groups of 64\)", lines[1]
    )
    cells = {line[:24].strip(): line[24:].split() for line in lines[4:]}
    assert lines[3].split() == ["text", "images"]
    assert cells["positions"] == ["143", "20"]
    assert len(lines) == 13


def test_json(demo_folder: Path, notes: Path) -> None:
    """Windows as told, and of images none."""
    options = ("--text", notes, "--window", 50, "--max-tokens", 120)
    result = run_here("compare", CHECKPOINT, demo_folder, *options, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found["a"]["folder"] == str(CHECKPOINT) and found["b"]["folder"] == str(demo_folder)
    assert found["a"]["bytes"] > found["b"]["bytes"] > 0
    assert "images" not in found
    text = found["text"]
    assert (text["positions"], text["predicted_tokens"]) == (123, 120)
    assert 0 < text["mean_divergence"] < text["max_divergence"] < 0.1
    ratio = text["perplexity_b"] / text["perplexity_a"]
    assert text["perplexity_ratio"] == pytest.approx(ratio)


def test_ctrl_c(notes: Path) -> None:
    """In the middle of a layer, with a read under way in its thread."""
    code = (
        "import os, signal\n"
        "from mlx_llama4.evaluation.layerwise import LayerwiseModel\n"
        "def stop(self, *args): os.kill(os.getpid(), signal.SIGINT)\n"
        "LayerwiseModel._add_expert = stop\n"
        "from mlx_llama4.cli.main import app\n"
        f"app(['compare', {str(CHECKPOINT)!r}, {str(CHECKPOINT)!r}, '--text', {str(notes)!r}])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_command_refusals(demo_folder: Path, tmp_path: Path, notes: Path) -> None:
    folders = (CHECKPOINT, demo_folder)
    assert "nothing to compare on; give --text FILE" in refused("compare", *folders)
    missing = tmp_path / "missing"
    assert f"{missing} does not exist" in refused("compare", missing, demo_folder, "-t", notes)
    assert f"cannot read {missing}: No such file" in refused("compare", *folders, "-t", missing)
    assert "cannot read" in refused("compare", *folders, "-t", tmp_path)
    cut = Path(shutil.copytree(demo_folder, tmp_path / "cut"))
    shard = cut / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1000])
    assert f"{shard} is truncated" in refused("compare", CHECKPOINT, cut, "-t", notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text"),
        (b" \n\t\n", "holds no text"),
        (b"fine at first \xff\xfe\x00", "is not UTF-8 text; convert it first"),
        ("é".encode("latin-1"), "is not UTF-8 text"),
    ],
)
def test_texts_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(PromptError, match=message):
        text_windows(path, Tokenizer.load(CHECKPOINT), window=10, max_tokens=10)


def test_pictures_that_are_none(notes: Path) -> None:
    processor = Processor.load(CHECKPOINT, open_source(CHECKPOINT).config)
    with pytest.raises(ImageError, match="notes"):
        image_windows([notes], processor)


def test_tokenizers_that_differ(demo_folder: Path, tmp_path: Path) -> None:
    """Spelled differently they are still the same; one id exchanged is enough to refuse."""
    other = Path(shutil.copytree(demo_folder, tmp_path / "other"))
    path = other / "tokenizer.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content, indent=7))
    check_same_vocabulary(demo_folder, other)
    ids = content["model"]["vocab"]
    ids["!"], ids["?"] = ids["?"], ids["!"]
    path.write_text(json.dumps(content))
    message = f"tokenizers differ, token '!' is {ids['?']} in the one and {ids['!']} in the other"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        check_same_vocabulary(demo_folder, other)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{other} has no tokenizer.json"):
        check_same_vocabulary(demo_folder, other)


def written(folder: Path, config: dict) -> Path:
    return tiny.write_checkpoint(folder, config, tiny.tensors(config))


def test_models_that_do_not_go_together(tmp_path: Path) -> None:
    scout = open_source(written(tmp_path / "scout", tiny.config("scout")))
    larger = open_source(written(tmp_path / "larger", tiny.config("scout", vocab_size=330)))
    with pytest.raises(CheckpointError, match="vocab_size is 320 in the one and 330 in the other"):
        check_comparable(scout, larger, windows_of(5))
    short = tiny.config("scout", max_position_embeddings=50)
    short = open_source(written(tmp_path / "short", short))
    check_comparable(scout, short, windows_of(50))
    with pytest.raises(PromptError, match=r"has 51 tokens but the context of .*short holds 50"):
        check_comparable(scout, short, windows_of(5, 51))
    windows = windows_of(5)
    windows[0].prompt.ids[2] = 320
    with pytest.raises(CheckpointError, match="gives id 320, but vocab_size is 320"):
        check_comparable(scout, scout, windows)


def test_images_need_two_vision_towers(tmp_path: Path, demo_folder: Path) -> None:
    source = open_source(demo_folder)
    windows = image_windows([PICTURES / "star.png"], Processor.load(demo_folder, source.config))
    other = Path(shutil.copytree(demo_folder, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"image_token_index": 1017}))
    with pytest.raises(CheckpointError, match="image_token_index is 1018 in the one and 1017"):
        check_comparable(source, open_source(other), windows)
    arrays = mx.load(str(other / "model.safetensors"))
    kept = {name: array for name, array in arrays.items() if name.startswith("language_model.")}
    (other / "model.safetensors.index.json").unlink()
    mx.save_safetensors(str(other / "model.safetensors"), kept)
    check_comparable(source, open_source(other), windows_of(5))
    with pytest.raises(PromptError, match="other has no vision tower; leave out the images"):
        check_comparable(source, open_source(other), windows)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"lm_head\.weight has values that float32 cannot hold"),
        (3e38, "broken gives logits that are not numbers; its weights are damaged"),
    ],
)
def test_damaged_weights(
    golden_folder: Callable[[str], Path], tmp_path: Path, value: float, message: str
) -> None:
    case = cases.MODELS["scout"]
    weights = case.weights()
    weights["language_model.lm_head.weight"][7] = value
    broken = tiny.write_checkpoint(tmp_path / "broken", case.config, weights)
    with pytest.raises(RunError, match=message):
        compare(open_source(golden_folder("scout")), open_source(broken), windows_of(5))


def test_a_shard_that_shrinks_meanwhile(tmp_path: Path) -> None:
    case = cases.MODELS["scout"]
    folder = tiny.write_checkpoint(tmp_path / "source", case.config, case.weights())
    convert(folder, tmp_path / "mlx", Recipe("float32", None))
    sources = (open_source(folder), open_source(tmp_path / "mlx"))
    shard = tmp_path / "mlx" / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(RunError, match="became shorter while it was read"):
        compare(*sources, windows_of(5))
