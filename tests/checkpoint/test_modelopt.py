"""NVIDIA's releases: what ModelOpt exports, with stacked experts or experts one by one."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import mlx_llama4.convert.plan as plan_module
from mlx_llama4.checkpoint.open import open_source
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.errors import CheckpointError, ConfigError, RunError
from mlx_llama4.opening import load_model
from mlx_llama4.planning.inspection import inspect_folder
from mlx_llama4.quantization import Quantization
from tests.checkpoint.quantized import QUANTIZED, e2m1, fp4_weight
from tests.convert.folders import arrays
from tests.golden import cases
from tests.raw_safetensors import Raw, float32, read_raw, write_raw
from tests.tolerance import assert_same_logits

MODELOPT = QUANTIZED.parent / "modelopt"
NAMES = ("fp8", "nvfp4")
PLAIN = Recipe("float32", None)
EXPERTS = "model.layers.1.feed_forward.experts"
Tensors = dict[str, Raw]


def stored(name: str) -> Tensors:
    return read_raw(MODELOPT / name / "model.safetensors")


def decoded(tensors: Tensors) -> dict[str, np.ndarray]:
    """The model's tensors, float32, by the formats' definitions."""
    result: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        ours = f"language_model.{name}"
        if name.endswith((".gate_up_proj", ".down_proj")):
            matrices = stacked(tensors, name).swapaxes(1, 2)
            parts = {"down_proj": matrices}
            if name.endswith(".gate_up_proj"):
                parts = dict(zip(("gate_proj", "up_proj"), np.split(matrices, 2, 1), strict=True))
            stem = ours.rpartition(".")[0]
            result |= {f"{stem}.{part}.weight": one for part, one in parts.items()}
        elif f"{name}_scale_2" in tensors:
            result[ours] = fp4_weight(tensors, name)
        elif f"{name}_scale" in tensors:
            result[ours] = tensor.floats() * tensors[f"{name}_scale"].floats()
        elif not name.endswith(("scale", "scale_2")):
            result[ours] = tensor.floats()
    return result


def stacked(tensors: Tensors, name: str) -> np.ndarray:
    """Stacked experts, float32 [experts, in, out]."""
    scale = tensors[f"{name}_weight_scale"].floats()
    if tensors[name].dtype == "F8_E4M3":
        experts = scale.shape[0] if scale.shape else 1
        return tensors[name].floats() * scale.reshape(experts, 1, -1)
    whole = tensors[f"{name}_weight_scale_2"].floats().reshape(-1, 1, 1)
    return e2m1(tensors[name], 1) * (scale * whole).repeat(16, 1)


def written(folder: Path, name: str, tensors: Tensors) -> Path:
    source = Path(shutil.copytree(MODELOPT / name, folder))
    write_raw(source / "model.safetensors", tensors)
    return source


def check_exact(source: Path, out: Path, tensors: Tensors) -> None:
    convert(source, out, PLAIN)
    found, expected = arrays(out), decoded(tensors)
    assert found.keys() == expected.keys()
    assert [key for key in found if not np.array_equal(np.array(found[key]), expected[key])] == []


def one_by_one(tensors: Tensors) -> Tensors:
    """The experts as modules of their own, each with the scales of the stack."""
    result: Tensors = {}
    for name, tensor in tensors.items():
        stem, found, kind = name.rpartition(".experts.")
        if not found:
            result[name] = tensor
            continue
        projection, _, part = kind.partition("_proj_")
        part = f"weight_{part}".replace("weight_weight_", "weight_") if part else "weight"
        part = part.replace("weight_input", "input")
        for index in range(4):
            row = tensor.row(index) if tensor.shape else tensor
            stems = [projection.removesuffix("_proj")]
            if stems == ["gate_up"]:
                stems = ["gate", "up"]
            for which, one in enumerate(stems):
                cut = row
                if row.shape:
                    matrix = np.split(row.data.reshape(row.shape), len(stems), 1)[which].T
                    cut = Raw(row.dtype, matrix.shape, np.ascontiguousarray(matrix).reshape(-1))
                result[f"{stem}.experts.{index}.{one}_proj.{part}"] = cut
    return result


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_reference_s(tmp_path: Path, name: str) -> None:
    convert(MODELOPT / name, tmp_path / "out", PLAIN)
    logits = load_model(tmp_path / "out", mx.float32)(mx.array(cases.quantized_ids()))
    expected = np.load(MODELOPT / "logits.npz")[name]
    assert_same_logits(np.array(logits)[0], expected, "text")


@pytest.mark.parametrize("name", NAMES)
def test_unpacked_weights_are_exact(tmp_path: Path, name: str) -> None:
    check_exact(MODELOPT / name, tmp_path / "out", stored(name))


@pytest.mark.parametrize("name", NAMES)
def test_experts_one_by_one_are_the_same_model(tmp_path: Path, name: str) -> None:
    source = written(tmp_path / "source", name, one_by_one(stored(name)))
    assert "experts one by one" in open_source(source).layout
    convert(source, tmp_path / "out", PLAIN)
    convert(MODELOPT / name, tmp_path / "stacked", PLAIN)
    one, other = arrays(tmp_path / "out"), arrays(tmp_path / "stacked")
    assert one.keys() == other.keys()
    assert all(mx.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("name", "part", "shape"),
    [
        ("fp8", "weight_scale", (4,)),
        ("fp8", "weight_scale", (4, 1, 1)),
        ("fp8", "weight_scale", (4, 1, 192)),
        ("fp8", "weight_scale", (4, 192)),
        ("nvfp4", "weight_scale_2", (4,)),
        ("nvfp4", "weight_scale_2", (4, 1, 1)),
    ],
)
def test_scales_of_each_expert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, part: str, shape: tuple[int, ...]
) -> None:
    tensors = stored(name)
    values = np.random.RandomState(3).uniform(0.5, 2, shape).astype(np.float32)
    key = f"{EXPERTS}.gate_up_proj_{part}"
    tensors[key] = float32(values * tensors[key].floats())
    source = written(tmp_path / "source", name, tensors)
    monkeypatch.setattr(plan_module, "BLOCK_BYTES", 1)  # expert by expert
    check_exact(source, tmp_path / "out", tensors)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kept", ["config.json", "hf_quant_config.json"])
def test_either_file_names_the_format(tmp_path: Path, name: str, kept: str) -> None:
    """NVIDIA's first releases have hf_quant_config.json alone."""
    source = Path(shutil.copytree(MODELOPT / name, tmp_path / "source"))
    if kept == "config.json":
        (source / "hf_quant_config.json").unlink()
    else:
        config = json.loads((source / "config.json").read_text())
        del config["quantization_config"]
        (source / "config.json").write_text(json.dumps(config))
    found = inspect_folder(source)
    assert found.complete
    assert found.quantization == f"quantized by modelopt {name.upper()}"
    assert sorted(found.ignored.values()) == [4, 16]  # of keys and values, and of inputs
    convert(source, tmp_path / "out", Recipe("bfloat16", Quantization(32, 4)))
    assert not (tmp_path / "out" / "hf_quant_config.json").exists()
    assert open_source(tmp_path / "out").config.foreign_quantization is None


@pytest.mark.parametrize("algorithm", ["W4A16_AWQ", "NVFP4_AWQ", "W4A8_AWQ", "INT8_SQ", None])
def test_other_algorithms_are_refused_by_name(tmp_path: Path, algorithm: str | None) -> None:
    source = Path(shutil.copytree(MODELOPT / "fp8", tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]
    (source / "config.json").write_text(json.dumps(config))
    table = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}}
    (source / "hf_quant_config.json").write_text(json.dumps(table))
    name = f"modelopt {algorithm}" if algorithm else "modelopt"
    with pytest.raises(CheckpointError, match=f"quantized by {name}, which is not supported"):
        convert(source, tmp_path / "out", PLAIN)


@pytest.mark.parametrize("table", ["[]", "{}", '{"quantization": "FP8"}', "{"])
def test_a_damaged_quantization_file(tmp_path: Path, table: str) -> None:
    source = Path(shutil.copytree(MODELOPT / "fp8", tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]
    (source / "config.json").write_text(json.dumps(config))
    (source / "hf_quant_config.json").write_text(table)
    with pytest.raises(ConfigError, match="hf_quant_config"):
        convert(source, tmp_path / "out", PLAIN)


NAN = np.float32(np.nan).reshape(1)


@pytest.mark.parametrize(
    ("name", "key", "tensor", "error", "message"),
    [
        ("fp8", "gate_up_proj_weight_scale", None, CheckpointError, "missing: .*weight_scale"),
        ("nvfp4", "gate_up_proj_weight_scale", None, CheckpointError, "missing: .*weight_scale"),
        ("nvfp4", "down_proj_weight_scale_2", None, CheckpointError, "missing: .*scale_2"),
        ("fp8", "down_proj_weight_scale", np.ones(3), CheckpointError, r"_weight_scale \[3\]"),
        ("nvfp4", "down_proj_weight_scale_2", np.ones(3), CheckpointError, "wrong shape: .*down"),
        ("nvfp4", "down_proj_weight_scale_2", NAN, RunError, "down_proj_weight_scale_2 has values"),
        ("fp8", "down_proj_weight_scale", NAN, RunError, "down_proj_weight_scale has values"),
        ("nvfp4", "gate_up_proj_input_amax", np.ones(1), CheckpointError, "unknown: .*input_amax"),
    ],
)  # fmt: skip
def test_damaged_sources_are_refused(
    tmp_path: Path,
    name: str,
    key: str,
    tensor: np.ndarray | None,
    error: type[Exception],
    message: str,
) -> None:
    tensors = stored(name)
    if tensor is None:
        del tensors[f"{EXPERTS}.{key}"]
    else:
        tensors[f"{EXPERTS}.{key}"] = float32(tensor)
    source = written(tmp_path / "source", name, tensors)
    with pytest.raises(error, match=message):
        convert(source, tmp_path / "out", PLAIN)
