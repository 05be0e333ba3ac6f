"""Hugging Face checkpoint → MLX folder."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import mlx_llama4.convert.plan as plan_module
from mlx_llama4.checkpoint.open import open_source
from mlx_llama4.checkpoint.safetensors import INDEX_NAME, Checkpoint, open_checkpoint
from mlx_llama4.config import load_config
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import Progress, Settings, convert
from mlx_llama4.memory import weight_bytes
from mlx_llama4.opening import load_model
from mlx_llama4.quantization import Quantization
from tests import tiny
from tests.convert.folders import FOUR_BITS, PLAIN, arrays, expected_arrays
from tests.golden import cases


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("shards", [1, 4])
def test_plain_weights_arrive_unchanged(tmp_path: Path, dtype: str, shards: int) -> None:
    case = cases.MODELS["maverick"]
    weights = case.weights()
    if dtype == "F16":  # bfloat16 reaches further down than float16
        weights = {n: w.astype(np.float16).astype(np.float32) for n, w in weights.items()}
    source = tiny.write_checkpoint(tmp_path / "source", case.config, weights, dtype, shards)
    convert(source, tmp_path / "out", PLAIN)
    found, expected = arrays(tmp_path / "out"), expected_arrays(weights)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert mx.array_equal(found[name], array), name


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("block_bytes", [pytest.param(1, marks=pytest.mark.slow), 5000, 2**26])
def test_packed_weights_are_those_of_whole_tensors(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    bits: int, group_size: int, block_bytes: int,
) -> None:  # fmt: skip
    """However finely the work is cut. Width 96 does not divide by 64: those stay as they are."""
    monkeypatch.setattr(plan_module, "BLOCK_BYTES", block_bytes)
    convert(checkpoint, tmp_path / "out", Recipe("bfloat16", Quantization(group_size, bits)))
    found = arrays(tmp_path / "out")
    for name, array in expected_arrays(cases.MODELS["scout"].weights()).items():
        array = array.astype(mx.bfloat16)
        module = name.removesuffix(".weight")
        if f"{module}.scales" not in found:
            assert mx.array_equal(found[name], array), name
            continue
        packed = mx.quantize(array, group_size, bits)
        for part, values in zip(("weight", "scales", "biases"), packed, strict=True):
            assert mx.array_equal(found[f"{module}.{part}"], values), name


def test_what_is_packed(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "out", FOUR_BITS)
    packed = {name.removesuffix(".scales") for name in arrays(tmp_path / "out") if "scales" in name}
    layer = "language_model.model.layers.3"
    for module in ("self_attn.q_proj", "feed_forward.experts.up_proj"):
        assert f"{layer}.{module}" in packed
    assert {"language_model.model.embed_tokens", "language_model.lm_head"} <= packed
    kept = ("router", "norm", "vision_model", "multi_modal_projector")
    assert not [module for module in packed if any(part in module for part in kept)]
    table = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert table[f"{layer}.feed_forward.router"] is False
    assert table["vision_model.model.layers.0.mlp.fc1"] is False


def test_bytes_are_as_planned(checkpoint: Path, tmp_path: Path) -> None:
    for index, recipe in enumerate((FOUR_BITS, PLAIN, Recipe("float16", Quantization(64, 8)))):
        out = tmp_path / str(index)
        report = convert(checkpoint, out, recipe)
        stored = sum(array.nbytes for array in arrays(out).values())
        width = 4 if recipe.dtype == "float32" else 2
        predicted = weight_bytes(load_config(out), recipe.of, width)
        assert report.output_bytes == stored == sum(predicted.values())


def test_config_has_both_spellings(tmp_path: Path) -> None:
    old = tiny.config("scout")
    new = json.loads(json.dumps(old))
    text = new["text_config"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    new["vision_config"]["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "default"}
    del new["vision_config"]["rope_theta"], new["vision_config"]["vision_feature_layer"]
    weights = tiny.tensors(old)
    written = []
    for name, config in (("old", old), ("new", new)):
        source = tiny.write_checkpoint(tmp_path / name, config, weights)
        convert(source, tmp_path / f"{name}-mlx", FOUR_BITS)
        result = json.loads((tmp_path / f"{name}-mlx" / "config.json").read_text())
        text = result["text_config"]
        assert text["rope_theta"] == text["rope_parameters"]["rope_theta"] == 500000.0
        assert text["rope_scaling"]["factor"] == text["rope_parameters"]["factor"] == 16.0
        assert result["vision_config"]["rope_theta"] == 10000.0
        assert result["vision_config"]["vision_feature_layer"] == -1
        assert result["image_token_index"] == result["image_token_id"] == tiny.PATCH_ID
        assert result["quantization"] == result["quantization_config"]
        written.append(load_config(tmp_path / f"{name}-mlx"))
    assert written[0] == written[1]


def test_config_is_what_peers_can_read(tmp_path: Path) -> None:
    """They know neither a chunk size of null nor a list of MoE layers."""
    for changes, expected in (
        ({"attention_chunk_size": None}, {"attention_chunk_size": 10485760}),
        ({"moe_layers": []}, {"interleave_moe_layer_step": 9}),
        ({"moe_layers": [2, 5]}, {"interleave_moe_layer_step": 3}),
    ):
        config = tiny.config("scout", **changes)
        source = tiny.write_checkpoint(tmp_path / "source", config, tiny.tensors(config))
        out = tmp_path / str(expected)
        convert(source, out, FOUR_BITS)
        text = json.loads((out / "config.json").read_text())["text_config"]
        assert expected.items() <= text.items()
        assert load_config(out).text.layers == load_config(source).text.layers


def test_side_files_come_along(checkpoint: Path, tmp_path: Path) -> None:
    copied = {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "generation_config.json", "preprocessor_config.json", "processor_config.json",
        "chat_template.jinja", "chat_template.json", "LICENSE.txt", "USE_POLICY.md",
    }  # fmt: skip
    checkpoint = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    texts = {name: f"this is {name}" for name in copied}
    texts["tokenizer.json"] = (checkpoint / "tokenizer.json").read_text()  # it is read, too
    for name, text in texts.items():
        (checkpoint / name).write_text(text)
    (checkpoint / "notes.txt").write_text("not ours")
    (checkpoint / "LICENSES").mkdir()
    (checkpoint / "LICENSE.gone").symlink_to(checkpoint / "gone")
    convert(checkpoint, tmp_path / "out", FOUR_BITS)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert all((tmp_path / "out" / name).read_text() == text for name, text in texts.items())
    written = {"config.json", "conversion.json", "model.safetensors", INDEX_NAME}
    assert names == written | copied


def test_shards_and_their_index(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "out", FOUR_BITS, settings=Settings(shard_bytes=200_000))
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / INDEX_NAME).read_text())
    found = arrays(tmp_path / "out")
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in found.values())
    model = load_model(tmp_path / "out")
    assert model(mx.array([[1, 2, 3]])).shape == (1, 3, tiny.VOCABULARY)
    checkpoint = open_checkpoint(tmp_path / "out")
    starts = {min(t.offset for t in checkpoint.tensors.values() if t.file == f)
              for f in checkpoint.files}  # fmt: skip
    assert {start % 16384 for start in starts} == {0}


def test_progress(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    report = convert(checkpoint, tmp_path / "out", PLAIN, seen.append)
    assert [told.done for told in seen] == sorted(told.done for told in seen)
    assert seen[-1] == Progress("Converting", report.source_bytes, report.source_bytes)


def test_memory_is_that_of_a_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 experts of 1.5 MB each, one tensor of 16 MB; never more than a few experts at once."""
    sizes = {"num_local_experts": 16, "intermediate_size": 512, "hidden_size": 512}
    config = tiny.config("scout", num_hidden_layers=1, **sizes)
    source = tiny.write_checkpoint(tmp_path / "source", config, tiny.tensors(config), "BF16")
    monkeypatch.setattr(plan_module, "BLOCK_BYTES", 2**18)
    read, reads = Checkpoint.read, []

    def counted(self: Checkpoint, *args: object) -> np.ndarray:
        data = read(self, *args)
        reads.append(data.nbytes)
        return data

    monkeypatch.setattr(Checkpoint, "read", counted)
    report = convert(source, tmp_path / "out", FOUR_BITS)
    expert_bytes = 512 * 1024 * 2
    assert max(reads) == expert_bytes
    assert report.source_bytes > 12 * 2**20
    assert report.peak_bytes < 5 * expert_bytes


@pytest.mark.parametrize(
    ("stored", "expected"), [("F32", "bfloat16"), ("BF16", "bfloat16"), ("F16", "float16")]
)
def test_default_dtype_is_what_is_stored(tmp_path: Path, stored: str, expected: str) -> None:
    """Whatever config.json says."""
    case = cases.MODELS["maverick"]
    for named in ("float16", "bfloat16", None):
        config = case.config | {"torch_dtype": named}
        tiny.write_checkpoint(tmp_path / f"{named}", config, case.weights(), stored)
        assert open_source(tmp_path / f"{named}").dtype == expected


def test_an_mlx_folder_of_plain_weights_can_be_quantized(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "plain", Recipe("bfloat16", None))
    convert(tmp_path / "plain", tmp_path / "twice", FOUR_BITS)
    convert(checkpoint, tmp_path / "once", FOUR_BITS)
    once, twice = arrays(tmp_path / "once"), arrays(tmp_path / "twice")
    assert once.keys() == twice.keys()
    assert all(mx.array_equal(once[name], twice[name]) for name in once)
