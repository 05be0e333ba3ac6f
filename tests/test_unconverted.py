"""Folders as they were published, run without being converted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import CHECKPOINT, PICTURES
from mlx_llama4.errors import CheckpointError, HubError, InputError
from mlx_llama4.hub.repository import find_folder
from mlx_llama4.offload.budget import ExpertStreaming
from mlx_llama4.opening import load_model, open_folder
from mlx_llama4.planning import admission
from mlx_llama4.planning.admission import Experts, Task, admit
from mlx_llama4.planning.machine import Machine
from tests import tiny
from tests.commands import refused, run_here
from tests.hub_server import NAME, Hub, tiny_repository
from tests.raw_safetensors import read_raw, write_raw

Weights = dict[str, np.ndarray]
IDS = mx.array([[3, 8, 25, 60, 7, 199]])


def one_by_one(weights: Weights) -> Weights:
    """Each expert's projections as tensors of their own, [out, in]."""
    result = {}
    for name, weight in weights.items():
        stem = name.rsplit(".", 1)[0]
        if name.endswith("gate_up_proj"):
            for index, expert in enumerate(weight):
                gate, up = np.split(expert, 2, axis=-1)
                result[f"{stem}.{index}.gate_proj.weight"] = gate.T
                result[f"{stem}.{index}.up_proj.weight"] = up.T
        elif name.endswith("experts.down_proj"):
            for index, expert in enumerate(weight):
                result[f"{stem}.{index}.down_proj.weight"] = expert.T
        else:
            result[name] = weight
    return result


def prefixed(weights: Weights) -> Weights:
    return {f"module.{name}": weight for name, weight in weights.items()}


def text_weights(weights: Weights) -> Weights:
    part = "language_model."
    return {name[len(part) :]: one for name, one in weights.items() if name.startswith(part)}


def as_is(weights: Weights) -> Weights:
    return weights


@pytest.mark.parametrize("stored", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("change", [as_is, one_by_one, prefixed, text_weights])
def test_the_same_model_as_its_conversion(
    tmp_path: Path, change: Callable[[Weights], Weights], stored: str
) -> None:
    config: dict[str, Any] = tiny.config("scout")
    weights = change(tiny.tensors(config))
    if change is text_weights:
        config = tiny.text_only(config)
    source = tiny.write_checkpoint(tmp_path / "source", config, weights, stored)
    convert(source, tmp_path / "out", Recipe("float32", None))
    found, expected = (load_model(folder)(IDS) for folder in (source, tmp_path / "out"))
    assert mx.array_equal(found, expected)


def test_tied_head(tmp_path: Path) -> None:
    config = tiny.text_only(tiny.config("scout")) | {"tie_word_embeddings": True}
    weights = text_weights(tiny.tensors(tiny.config("scout")))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    whole = load_model(tiny.write_checkpoint(tmp_path / "whole", config, weights))(IDS)
    del weights["lm_head.weight"]
    tied = load_model(tiny.write_checkpoint(tmp_path / "tied", config, weights))(IDS)
    assert mx.array_equal(whole, tied)


def test_in_its_dtype(tmp_path: Path) -> None:
    """What a GPU would have; the CPU computes in float32 unless told otherwise."""
    model = load_model(CHECKPOINT, mx.bfloat16, arrange=False)
    stored = read_raw(CHECKPOINT / "model.safetensors")
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    weight = model.language_model.model.layers[0].self_attn.q_proj.weight
    assert weight.dtype == mx.bfloat16
    assert np.asarray(weight.view(mx.uint16)).tobytes() == stored[name].data.tobytes()


def test_on_the_command_line() -> None:
    answer = run_here("ask", "What is 7 plus 5?", "-m", CHECKPOINT)
    assert answer.stdout == "7 plus 5 is 12.\n"
    said = "runs as it is; converting makes it about a quarter as large: mlx-llama4 convert "
    assert f"{said}{CHECKPOINT} OUTPUT_FOLDER" in answer.stderr
    question = "What is in the image?"
    picture = run_here("ask", question, "-i", PICTURES / "star.png", "-m", CHECKPOINT)
    assert picture.returncode == 0 and "star" in picture.stdout
    chat = run_here("chat", "-m", CHECKPOINT, text="What is 7 plus 5?\n")
    assert chat.stdout == "7 plus 5 is 12.\n" and "is not converted" in chat.stderr


def test_a_converted_folder_says_nothing(demo_folder: Path) -> None:
    answer = run_here("ask", "What is 7 plus 5?", "-m", demo_folder)
    assert "converted" not in answer.stderr


def test_streaming_needs_a_conversion() -> None:
    for options in (("--experts", "stream"), ("--expert-memory", "1GB")):
        said = refused("ask", "x", "-m", CHECKPOINT, *options)
        assert "experts are streamed from converted folders only; run: mlx-llama4 convert" in said
    with pytest.raises(InputError, match="streamed from converted folders only"):
        load_model(CHECKPOINT, streaming=ExpertStreaming(10**9))


@pytest.mark.parametrize("megabytes", [1, 5, 15])
def test_too_large(monkeypatch: pytest.MonkeyPatch, megabytes: int) -> None:
    memory = megabytes * 10**6
    monkeypatch.setattr(admission.machines, "this_machine", lambda: Machine(memory, memory, None))
    source = open_folder(CHECKPOINT).source
    with pytest.raises(InputError) as caught:
        admit(source, Task(100))
    said = str(caught.value)
    assert "is not converted, and takes " in said and f"of {megabytes} MB available" in said
    assert f"about a quarter as large: mlx-llama4 convert {CHECKPOINT} OUTPUT_FOLDER" in said
    assert admit(source, Task(100), Experts(), force=True).placement.streaming is None


def test_the_plan_counts_each_tensor_once(tmp_path: Path) -> None:
    """Gate and up are one tensor of the source and two of the model."""
    convert(CHECKPOINT, tmp_path / "out", Recipe("bfloat16", None))
    needs = [
        admit(open_folder(folder).source, Task(100)).placement.need.weights
        for folder in (CHECKPOINT, tmp_path / "out")
    ]
    assert needs[0] == needs[1]


@pytest.mark.parametrize("damage", ["missing", "unknown", "quantized", "config"])
def test_what_is_still_refused(tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "source"))
    raw = json.loads((folder / "config.json").read_text())
    tensors = read_raw(folder / "model.safetensors")
    norm = "language_model.model.norm.weight"
    if damage == "missing":
        del tensors[norm]
    elif damage == "unknown":
        tensors["mtp.head.weight"] = tensors[norm]
    elif damage == "quantized":
        raw["quantization_config"] = {"quant_method": "fp8"}
    else:
        raw["text_config"]["hidden_size"] *= 2
    write_raw(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(raw))
    said = "is not converted yet" if damage == "quantized" else f"{folder}: tensor "
    with pytest.raises(CheckpointError, match=said):
        load_model(folder)


def test_small_repositories_are_downloaded_to_run(hub: Hub, tmp_path: Path) -> None:
    folder = hub.repositories["owner/plain"] = tiny_repository(tmp_path / "plain", "hf")
    with pytest.raises(CheckpointError, match="is not converted yet"):
        find_folder("owner/plain")  # its index does not say how large it is
    index = folder / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    for total, fits in ((10**15, False), (192, True)):
        hub.repositories[f"owner/plain{total}"] = folder
        index.write_text(json.dumps(raw | {"metadata": {"total_size": total}}))
        if fits:
            assert list(find_folder(f"owner/plain{total}").glob("model-*.safetensors"))
        else:
            with pytest.raises((CheckpointError, HubError)):
                find_folder(f"owner/plain{total}")
    assert find_folder(NAME)
