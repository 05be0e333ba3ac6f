"""Everything a user may get wrong: one line, exit code 2, before any weight is read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import CHECKPOINT, PICTURES
from tests import tiny
from tests.commands import refused, run


def test_folders(tmp_path: Path, demo_folder: Path) -> None:
    for command in (("ask", "x", "-m"), ("chat", "-m"), ("inspect",)):
        assert "does not exist" in refused(*command, tmp_path / "nowhere")
        assert "no config.json" in refused(*command, tmp_path)
        assert "is a file" in refused(*command, demo_folder / "config.json")
    assert "does not exist" in refused("convert", tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    for command in (("ask", "x", "-m"), ("chat", "-m"), ("inspect",)):
        assert f"{tmp_path}: config.json says" in refused(*command, tmp_path)
    assert "only Llama 4 runs here" in refused("convert", tmp_path, tmp_path / "out")


def test_damaged_weights(demo_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo_folder, tmp_path / "model")
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    for command in (("ask", "x", "-m"), ("inspect",)):
        assert "model.safetensors is truncated" in refused(*command, folder)
    weights.unlink()
    assert "1 of 1 shards missing (model.safetensors)" in refused("inspect", folder)
    (folder / "model.safetensors.index.json").unlink()
    assert "holds no model*.safetensors" in refused("ask", "x", "-m", folder)


def test_images(demo_folder: Path, tmp_path: Path) -> None:
    notes, empty, cut = (tmp_path / name for name in ("notes.png", "empty.png", "cut.png"))
    (tmp_path / "folder").mkdir()
    notes.write_text("some text")
    empty.touch()
    Image.effect_noise((200, 200), 50).save(cut)
    os.truncate(cut, 900)
    for path, message in (
        (notes, "is not a picture in a known format"),
        (empty, "is empty (0 bytes)"),
        (cut, "is damaged"),
        (tmp_path / "folder", "is a folder that holds no pictures"),
        (tmp_path / "gone.jpg", "does not exist"),
    ):
        said = refused("ask", "x", "-m", demo_folder, "-i", path)
        assert said.startswith(f"error: {path} {message}")


def test_prompts(demo_folder: Path, tmp_path: Path) -> None:
    assert "the question is empty" in refused("ask", "", "-m", demo_folder)
    assert "the question is empty" in refused("ask", "-m", demo_folder, text=" \n")
    folder = shutil.copytree(demo_folder, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 20
    (folder / "config.json").write_text(json.dumps(config))
    said = refused("ask", "What is 7 plus 5? " * 9, "-m", folder)
    assert "tokens; this model's context holds 20, answer included" in said


def test_images_without_a_vision_tower(tmp_path: Path) -> None:
    config = tiny.config("scout", vocab_size=1019)
    config["vision_config"] = None
    source = tiny.write_checkpoint(tmp_path / "source", config, tiny.tensors(config))
    shutil.copy(CHECKPOINT / "tokenizer.json", source)
    convert(source, tmp_path / "mlx", Recipe("float32", None))
    said = refused("ask", "x", "-m", tmp_path / "mlx", "-i", PICTURES / "star.png")
    assert "no vision tower" in said


def test_convert_without_a_tokenizer(tmp_path: Path) -> None:
    source = shutil.copytree(CHECKPOINT, tmp_path / "source")
    (source / "tokenizer.json").unlink()
    assert "no tokenizer.json; download it too" in refused("convert", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_text_that_is_no_utf_8(demo_folder: Path) -> None:
    code = "import os, sys; os.execv(sys.executable, [sys.executable, '-m', 'mlx_llama4', "
    for arguments, stdin in (
        (f"'ask', b'caf\\xe9', '-m', {str(demo_folder)!r}])", b""),
        (f"'ask', 'x', '--system', b'caf\\xe9', '-m', {str(demo_folder)!r}])", b""),
        (f"'ask', '-', '-m', {str(demo_folder)!r}])", b"caf\xe9"),
    ):
        result = subprocess.run(
            [sys.executable, "-c", code + arguments],
            input=stdin,
            capture_output=True,
            check=False,
        )
        assert result.returncode == 2
        assert result.stderr.startswith(b"error: the text is not UTF-8")


@pytest.mark.slow
def test_options(demo_folder: Path, tmp_path: Path) -> None:
    assert "top-p 3.0" in refused("ask", "x", "-m", demo_folder, "--top-p", 3)
    assert "temperature -1.0" in refused("ask", "x", "-m", demo_folder, "--temperature", -1)
    out = tmp_path / "out"
    for said, options in {
        "7 bits are not supported": ("--bits", 7),
        "groups of 7 are not supported": ("--group-size", 7),
        "mxfp4 has 4 bits in groups of 32": ("--mode", "mxfp4", "--bits", 8),
        "--bits 16 packs nothing": ("--bits", 16, "--mode", "mxfp4"),
        "--search is for affine packing": ("--search", "--mode", "mxfp4"),
        "--search is for affine packing, and nothing": ("--search", "--bits", 16),
        "recipe 'mixed-6-3' is unknown": ("--recipe", "mixed-6-3"),
        "leave out --bits and --mode": ("--recipe", "mixed-3-6", "--bits", 4),
        "'x' is not of the form PATTERN=BITS": ("--rule", "x"),
        "--rule 'x' matches no module": ("--rule", "x=4"),
        "--target-size chooses the bits": ("--target-size", "2MB", "--bits", 4),
        "--target-size 1 MB is too small": ("--target-size", "1MB"),
        "'much' is not a size": ("--target-size", "much"),
        "'5 apples' is not a size": ("--shard-size", "5 apples"),
    }.items():
        assert said in refused("convert", CHECKPOINT, out, *options)
    assert not list(tmp_path.iterdir())
    seed = ("--temperature", 1, "--seed", 2**64)
    assert f"seed {2**64}" in refused("ask", "x", "-m", demo_folder, *seed)
    assert run("ask", "x").returncode == 2
    assert run("dance").returncode == 2
    assert run("convert", CHECKPOINT, out, "--dtype", "int8").returncode == 2


def test_a_folder_with_a_name_of_any_bytes(tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        out.mkdir()
    except OSError:
        pytest.skip("this disk knows no such names")
    assert run("convert", CHECKPOINT, out).returncode == 0
    assert "caf?" in (out / "README.md").read_text("utf-8")


def test_destinations(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "already exists" in refused("convert", CHECKPOINT, tmp_path)
    assert "cannot write to" in refused("convert", CHECKPOINT, tmp_path / "file" / "out")
