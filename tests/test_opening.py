"""Model folder → model: quantized in every way, and refused with one clear line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_llama4.config import parse_config
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.errors import CheckpointError, ConfigError
from mlx_llama4.memory import activation_bytes
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.opening import load, load_model
from mlx_llama4.planning.inspection import inspect_folder
from mlx_llama4.quantization import FIXED_MODES, Quantization
from mlx_llama4.tensors import model_tensors
from tests import tiny
from tests.golden import cases
from tests.tolerance import assert_same_logits
from tests.unpacked import dequantized

IDS = cases.text_ids(60)


@pytest.mark.parametrize("name", cases.MODELS)
def test_tensor_table_is_the_model_s(name: str) -> None:
    config = parse_config(cases.MODELS[name].config)
    parameters = dict(tree_flatten(Llama4(config).parameters()))
    table = model_tensors(config)
    assert {name: array.shape for name, array in parameters.items()} == {
        name: spec.shape for name, spec in table.items()
    }


@pytest.mark.parametrize(
    "quantization",
    [
        Quantization(32, 4),
        Quantization(64, 8),
        Quantization(32, 4, "mxfp4"),
        Quantization(32, 8, "mxfp8"),
        Quantization(16, 4, "nvfp4"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["scout", "maverick"])
def test_packed_model_is_the_unpacked_one(
    tmp_path: Path, name: str, quantization: Quantization
) -> None:
    case = cases.MODELS[name]
    source = tiny.write_checkpoint(tmp_path / "source", case.config, case.weights())
    convert(source, tmp_path / "packed", Recipe("bfloat16", quantization))
    unpacked = dequantized(tmp_path / "packed", tmp_path / "unpacked", quantization)
    models = [load_model(folder, mx.float32) for folder in (tmp_path / "packed", unpacked)]
    ours, plain = (np.array(model(mx.array(IDS))) for model in models)
    assert_same_logits(ours, plain, "text")


def test_one_dtype_throughout(golden_folder: Callable[[str], Path], tmp_path: Path) -> None:
    source = golden_folder("scout")
    convert(source, tmp_path / "packed", Recipe("bfloat16", Quantization(32, 4)))
    for dtype in (mx.float32, mx.bfloat16):
        model = load_model(tmp_path / "packed", dtype)
        dtypes = {array.dtype for _, array in tree_flatten(model.parameters())}
        assert dtypes == {dtype, mx.uint32}
    if mx.default_device() == mx.cpu:
        model = load_model(tmp_path / "packed")
        assert model.vision_model.class_embedding.dtype == mx.float32


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["scout", "maverick"])
def test_activations_stay_within_their_formula(preset: str) -> None:
    """With steps so short that scores do not matter, at proportions like the releases'."""
    widths = {"hidden_size": 512, "num_attention_heads": 8, "head_dim": 64, "num_hidden_layers": 4}
    inner = {"intermediate_size": 1024, "intermediate_size_mlp": 2048}
    model = Llama4(parse_config(tiny.config(preset, **widths, **inner)))
    embeddings, cache = model.embed(tiny.text_ids(512, 0)), model.make_cache()
    mx.eval(model.parameters(), embeddings)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(model(embeddings, cache, last_only=True, attention_step=16))
    used = mx.get_peak_memory() - before - sum(layer.nbytes for layer in cache)
    predicted = activation_bytes(model.config.text, 512, 4)
    print(f"used {used:,}, predicted at most {predicted:,}")
    assert predicted / 2 < used <= predicted


@pytest.fixture
def folder(tmp_path: Path, golden_folder: Callable[[str], Path]) -> Path:
    return Path(shutil.copytree(golden_folder("scout"), tmp_path / "model"))


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder: Path, change: Callable[[dict[str, mx.array]], object]) -> None:
    weights = dict(mx.load(str(folder / "model.safetensors")))
    change(weights)
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "model.safetensors.index.json").unlink()


def refused(folder: Path, error: type[Exception] = CheckpointError) -> str:
    with pytest.raises(error) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


NORM = "language_model.model.norm.weight"


def test_missing_tensor(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop(NORM))
    assert f"tensor missing: {NORM};" in refused(folder)
    assert inspect_folder(folder).problems["missing"] == [NORM]


def test_unknown_tensor(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({"language_model.x": weights[NORM]}))
    assert "tensor unknown: language_model.x;" in refused(folder)
    assert inspect_folder(folder).problems["unknown"] == ["language_model.x"]


def test_wrong_shape(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({NORM: weights[NORM][:-1]}))
    assert f"tensor of a wrong shape: {NORM} [63];" in refused(folder)
    assert inspect_folder(folder).problems["of a wrong shape"] == [f"{NORM} [63]"]


def test_wrong_type(folder: Path) -> None:
    edit_weights(folder, lambda w: w.update({NORM: mx.zeros(w[NORM].shape, mx.int32)}))
    assert f"tensor of a wrong type: {NORM} I32;" in refused(folder)
    assert inspect_folder(folder).problems["of a wrong type"] == [f"{NORM} I32"]


def test_buffers_and_odd_names_of_shards(folder: Path) -> None:
    """Some tools save buffers, and an index may call a shard anything."""
    edit_weights(folder, lambda w: w.update({"language_model.model.rotary_emb.inv_freq": w[NORM]}))
    (folder / "model.safetensors").rename(folder / "weights.bin")
    with (folder / "model.safetensors.index.json").open("w") as file:
        json.dump({"weight_map": {NORM: "weights.bin"}}, file)
    assert load_model(folder)(mx.array(IDS)).shape == (1, 60, tiny.VOCABULARY)


def test_half_a_vision_tower(folder: Path) -> None:
    name = "vision_model.layernorm_pre.bias"
    edit_weights(folder, lambda weights: weights.pop(name))
    assert f"tensor missing: {name};" in refused(folder)


def test_unknown_quantization_mode(folder: Path) -> None:
    edit_config(folder, quantization={"group_size": 64, "bits": 4, "mode": "q4_k"})
    assert "mode 'q4_k' is unknown" in refused(folder, ConfigError)


def test_scales_that_the_config_does_not_know_of(
    folder: Path, golden_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    convert(folder, tmp_path / "packed", Recipe("bfloat16", Quantization(32, 4)))
    edit_config(tmp_path / "packed", quantization=None, quantization_config=None)
    assert "has scales, but config.json says it is not quantized" in refused(tmp_path / "packed")


def test_wrong_bits(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "packed", Recipe("bfloat16", Quantization(32, 4)))
    edit_config(tmp_path / "packed", quantization={"group_size": 32, "bits": 8})
    assert "of a wrong shape: language_model" in refused(tmp_path / "packed")
    edit_config(tmp_path / "packed", quantization={"group_size": 64, "bits": 4})
    assert "of a wrong shape" in refused(tmp_path / "packed")


def test_missing_biases(folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    convert(folder, packed, Recipe("bfloat16", Quantization(32, 4)))
    edit_weights(packed, lambda weights: weights.pop("language_model.lm_head.biases"))
    assert "tensor missing: language_model.lm_head.biases;" in refused(packed)


def test_checkpoints_that_are_not_converted(tmp_path: Path) -> None:
    config = tiny.config("scout")
    source = tiny.write_checkpoint(tmp_path / "hf", config, tiny.tensors(config))
    edit_config(source, quantization_config={"quant_method": "fp8"})
    assert f"is not converted yet; run: mlx-llama4 convert {source}" in refused(source)


def test_folder_without_a_tokenizer(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load(folder)


def test_inspection(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "packed", Recipe("bfloat16", Quantization(32, 4)))
    source = cases.MODELS["scout"]
    tiny.write_checkpoint(tmp_path / "hf", source.config, source.weights(), "BF16", shards=2)
    found = {name: inspect_folder(tmp_path / name) for name in ("model", "packed", "hf")}
    parameters = sum(weight.size for weight in source.weights().values())
    for inspection in found.values():
        assert inspection.complete
        assert inspection.parameters == parameters
        assert "text and images" in inspection.variant
    assert found["hf"].layout.startswith("Hugging Face")
    assert found["hf"].nbytes == 2 * parameters
    assert found["packed"].quantization == "quantized: 4 bits, groups of 32"
    parts = {part.name: part for part in found["packed"].parts}
    assert parts["routed experts"].stored_as == ("4 bits affine",)
    assert parts["router"].stored_as == ("BF16",)
    stored = (tmp_path / "packed" / "model.safetensors").stat().st_size
    assert 0 < stored - found["packed"].nbytes < 64 * 1024


def test_inspection_names_the_releases(tmp_path: Path) -> None:
    from mlx_llama4.planning.inspection import _variant

    raw = tiny.config("scout", num_hidden_layers=48, hidden_size=5120, num_local_experts=16)
    assert _variant(parse_config(raw)) == "Llama 4 Scout, text and images"
    raw["text_config"]["num_local_experts"] = 128
    assert _variant(parse_config(raw | {"vision_config": None})) == "Llama 4 Maverick, text only"


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_one_type_through_the_network_whatever_the_packing(
    checkpoint: Path, tmp_path: Path, mode: str
) -> None:
    """The scales of these modes have no float type that embeddings could take over."""
    convert(checkpoint, tmp_path / "out", Recipe("bfloat16", FIXED_MODES[mode]))
    model = load_model(tmp_path / "out", mx.float32)
    assert "language_model.model.embed_tokens.scales" in dict(tree_flatten(model.parameters()))
    assert model.embed(np.array([[1, 2, 3]])).dtype == mx.float32


def test_loading_tells_how_far_it_is(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_llama4.opening.LOAD_STEP", 10**6)
    told: list[tuple[int, int]] = []
    model, _ = load(demo_folder, on_load=lambda *how: told.append(how))
    total = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert told[0] == (0, total) and told[-1] == (total, total)
    steps = [done for done, _ in told]
    assert steps == sorted(steps) and len(steps) > 3
