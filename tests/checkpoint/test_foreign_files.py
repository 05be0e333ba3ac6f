"""Folders and files that are something else than a checkpoint are named, with what to do."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_llama4.checkpoint.meta.torch_file import read_torch_file
from mlx_llama4.checkpoint.open import open_source
from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import CHECKPOINT
from mlx_llama4.errors import CheckpointError, ConfigError
from mlx_llama4.prompt.tokenizer import Tokenizer
from tests import tiny
from tests.commands import refused, run_here
from tests.convert.folders import PLAIN, arrays
from tests.golden import cases

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.mark.parametrize("has_config", [True, False])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adapter_config.json", "holds a LoRA adapter (adapter_config.json) without its model"),
        ("adapter_model.safetensors", "holds a LoRA adapter"),
        ("adapters.safetensors", "holds a LoRA adapter (adapters.safetensors)"),
        ("pytorch_model.bin", "pytorch_model.bin: a pickle of PyTorch, which could run any code"),
        ("pytorch_model-00001-of-00004.bin", "a pickle of PyTorch"),
        ("scout-Q4_K_M.gguf", "scout-Q4_K_M.gguf: GGUF, llama.cpp's format"),
        ("model.onnx", "a graph for ONNX"),
        ("weights.safetensors", "weights.safetensors, but no model*.safetensors and no index"),
    ],
)
def test_other_formats(tmp_path: Path, name: str, words: str, has_config: bool) -> None:
    if has_config:
        shutil.copy(CHECKPOINT / "config.json", tmp_path)
    (tmp_path / name).write_bytes(b"\0" * 64)
    for command in (("inspect",), ("convert",)):
        out = (tmp_path / "out",) if command == ("convert",) else ()
        message = refused(*command, tmp_path, *out)
        assert words in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["inspect", "convert"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_pointers_of_git_lfs(tmp_path: Path, name: str, command: str) -> None:
    folder = shutil.copytree(CHECKPOINT, tmp_path / "source")
    (folder / name).write_bytes(POINTER)
    out = (tmp_path / "out",) if command == "convert" else ()
    assert f"{name} is a Git LFS pointer, not the file itself; run git lfs pull" in refused(
        command, folder, *out
    )


@pytest.mark.parametrize(
    "name",
    ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "processor_config.json",
     "chat_template.jinja", "model.safetensors.index.json"],
)  # fmt: skip
def test_pointers_in_a_folder_that_runs(demo_folder: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(demo_folder, tmp_path / "model")
    (folder / name).write_bytes(POINTER)
    assert f"{name} is a Git LFS pointer" in refused("ask", "Hello", "-m", folder)
    inspected = run_here("inspect", folder)
    assert f"{name} is a Git LFS pointer" in inspected.stdout + inspected.stderr
    assert "can be converted" not in inspected.stdout


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module.model."])
@pytest.mark.parametrize("name", ["scout", "tied"])
def test_a_prefix_before_all_names(tmp_path: Path, name: str, prefix: str) -> None:
    case = cases.MODELS[name]
    plain = tiny.write_checkpoint(tmp_path / "plain", case.config, case.weights())
    saved = {f"{prefix}{key}": value for key, value in case.weights().items()}
    wrapped = tiny.write_checkpoint(tmp_path / "wrapped", case.config, saved, shards=2)
    for folder in (plain, wrapped):
        convert(folder, tmp_path / f"{folder.name}-mlx", PLAIN)
    found, expected = (arrays(tmp_path / f"{one}-mlx") for one in ("wrapped", "plain"))
    assert found.keys() == expected.keys()
    assert all(mx.array_equal(found[key], expected[key]) for key in expected)


def test_a_prefix_before_some_names(tmp_path: Path) -> None:
    """Is no prefix: what lacks it is no part of the model."""
    case = cases.MODELS["scout"]
    saved = {f"module.{key}": value for key, value in case.weights().items()}
    saved["lm_head.weight"] = saved.pop("module.language_model.lm_head.weight")
    folder = tiny.write_checkpoint(tmp_path / "source", case.config, saved)
    assert "tensor missing" in refused("convert", folder, tmp_path / "out")


def test_an_image_token_of_another_tokenizer(tmp_path: Path) -> None:
    folder = shutil.copytree(CHECKPOINT, tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    key = next(key for key in config if key.startswith("image_token"))
    right = config[key]
    (folder / "config.json").write_text(json.dumps(config | {key: right - 1}))
    with pytest.raises(ConfigError) as caught:
        convert(folder, tmp_path / "out", PLAIN)
    message = str(caught.value)
    assert f"{right - 1} is not the tokenizer's <|patch|> (its id is {right})" in message
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for added in ([], None, [3], tokenizer["added_tokens"][:2]):
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"added_tokens": added}))
        with pytest.raises(ConfigError, match=r"\(it has none\)"):
            convert(folder, tmp_path / "out", PLAIN)
    assert not [*tmp_path.glob("out*")]


def test_an_adapter_beside_weights(demo_folder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(CHECKPOINT, tmp_path / "source")
    (source / "adapter_config.json").write_text("{}")
    left_out = "adapter_config.json: this LoRA adapter is left out"
    assert left_out in run_here("convert", source, tmp_path / "out").stderr
    assert left_out in run_here("inspect", source).stdout
    folder = shutil.copytree(demo_folder, tmp_path / "model")
    (folder / "adapters.safetensors").write_bytes(b"")
    said = run_here("ask", "Hello", "-m", folder)
    assert said.returncode == 0
    assert said.stderr.count("adapters.safetensors: this LoRA adapter is left out") == 1


def test_pointers_in_meta_s_layout(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text("{}")
    (tmp_path / "consolidated.00.pth").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"00\.pth is a Git LFS pointer"):
        read_torch_file(tmp_path / "consolidated.00.pth")
    (tmp_path / "tokenizer.model").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is a Git LFS pointer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"# xet version 0\nfilesize = 9\nhash = '00'\n", "is a Git Xet pointer"),
        (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", "is a web page"),
        (b"\n<html lang='en'>", "is a web page"),
    ],
)
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"]
)
def test_other_things_in_a_file_s_place(
    demo_folder: Path, tmp_path: Path, name: str, start: bytes, words: str
) -> None:
    folder = shutil.copytree(demo_folder, tmp_path / "model")
    (folder / name).write_bytes(start)
    assert f"{name} {words}" in refused("ask", "Hello", "-m", folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("original/model.safetensors", "has its weights in a folder of its own; give "),
        (".cache/huggingface/download/x.incomplete", "holds a download that broke off"),
        ("training_args.bin", "holds no model*.safetensors"),
        ("rng_state_0.pth", "holds no model*.safetensors"),
        ("._model.gguf", "holds no model*.safetensors"),
    ],
)
def test_what_lies_elsewhere(tmp_path: Path, name: str, words: str) -> None:
    shutil.copy(CHECKPOINT / "config.json", tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    assert words in refused("inspect", tmp_path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (".self_attn.", ".self_attn._orig_mod."),
        ("layers.0.", "layers.0._checkpoint_wrapped_module."),
        ("language_model.", "_fsdp_wrapped_module.language_model."),
    ],
)
def test_wrappers_of_single_layers(tmp_path: Path, before: str, after: str) -> None:
    case = cases.MODELS["tied"]
    saved = {key.replace(before, after): value for key, value in case.weights().items()}
    folder = tiny.write_checkpoint(tmp_path / "source", case.config, saved)
    plain = tiny.write_checkpoint(tmp_path / "plain", case.config, case.weights())
    found, expected = (open_source(one).matching for one in (folder, plain))
    assert not any(found.problems.values()) and found.sources.keys() == expected.sources.keys()


def test_two_tensors_never_become_one(tmp_path: Path) -> None:
    case = cases.MODELS["tied"]
    saved = case.weights()
    name = next(key for key in saved if key.endswith("norm.weight"))
    folder = tiny.write_checkpoint(
        tmp_path / "source", case.config, saved | {f"_orig_mod.{name}": saved[name]}
    )
    assert open_source(folder).matching.unknown == [f"_orig_mod.{name}"]
