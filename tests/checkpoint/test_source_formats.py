"""Every format that a checkpoint may come in means the model that the reference says it does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import mlx_llama4.convert.plan as plan_module
from mlx_llama4.checkpoint.open import open_source
from mlx_llama4.convert.recipes import Recipe, parse_rule
from mlx_llama4.convert.run import Report, convert
from mlx_llama4.opening import load_model
from mlx_llama4.quantization import Quantization
from tests import tiny
from tests.checkpoint.quantized import QUANTIZED, fp4_weight, one_by_one
from tests.convert.folders import arrays, expected_arrays
from tests.golden import cases
from tests.raw_safetensors import Raw, bfloat16, read_raw, write_raw
from tests.tolerance import assert_same_logits

VLM_FOLDER = QUANTIZED.parent / "mlx_vlm_4bit"
INTEGERS = [name for name in cases.QUANTIZED if name.startswith("int")]
IDS = mx.array(cases.quantized_ids())
PLAIN = Recipe("float32", None)
KEPT = Recipe("bfloat16", None, keeps=True)
FOUR_BITS = Recipe("bfloat16", Quantization(32, 4))


def logits(folder: Path, ids: mx.array = IDS) -> np.ndarray:
    return np.array(load_model(folder, mx.float32)(ids))[0]


def same(first: Path, second: Path) -> bool:
    one, other = arrays(first), arrays(second)
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and mx.array_equal(one[name], other[name])
        for name in one
    )


def unpacked(words: np.ndarray, bits: int, axis: int, size: int) -> np.ndarray:
    """Codes of compressed-tensors' int32 words along an axis, lowest bits first."""
    codes = [(words >> np.uint32(shift)) & np.uint32(2**bits - 1) for shift in range(0, 32, bits)]
    merged = np.stack(codes, axis + 1)
    shape = [*words.shape]
    shape[axis] *= 32 // bits
    return np.take(merged.reshape(shape), range(size), axis).astype(np.int64)


def stored_weight(tensors: dict[str, Raw], module: str, block: int | None) -> np.ndarray:
    """The float32 weight of a module of a quantized checkpoint, by its format's definition."""
    if f"{module}.weight_packed" in tensors:
        if tensors[f"{module}.weight_packed"].dtype == "U8":
            return fp4_weight(tensors, f"{module}.weight")
        words = tensors[f"{module}.weight_packed"].words()
        out, width = tensors[f"{module}.weight_shape"].data.view(np.int64)
        bits = words.shape[1] * 32 // width
        codes = unpacked(words, bits, 1, width)
        scale = tensors[f"{module}.weight_scale"].floats()
        zero = np.full(scale.shape, 2 ** (bits - 1))
        if f"{module}.weight_zero_point" in tensors:
            zero = unpacked(tensors[f"{module}.weight_zero_point"].words(), bits, 0, out)
        group = width // scale.shape[1]
        return ((codes - zero.repeat(group, 1)) * scale.repeat(group, 1)).astype(np.float32)
    if f"{module}.weight.absmax" in tensors:
        return nf4_weight(tensors, f"{module}.weight")
    values = tensors[f"{module}.weight"].floats()
    inverse = f"{module}.weight_scale_inv"
    if inverse in tensors:
        rows, columns = values.shape
        scale = tensors[inverse].floats().repeat(block, 0).repeat(block, 1)
        return values * scale[:rows, :columns]
    scale = tensors.get(f"{module}.weight_scale")
    return values if scale is None else values * scale.floats()


def nf4_weight(tensors: dict[str, Raw], weight: str) -> np.ndarray:
    """The float32 weight of a module by bitsandbytes, whose scales are quantized, too."""
    state = json.loads(tensors[f"{weight}.quant_state.bitsandbytes__nf4"].data.tobytes())
    absmax = tensors[f"{weight}.absmax"].data
    factors = tensors[f"{weight}.nested_absmax"].floats().repeat(state["nested_blocksize"])
    scales = tensors[f"{weight}.nested_quant_map"].floats()[absmax] * factors[: len(absmax)]
    scales = scales + np.float32(state["nested_offset"])
    codes = tensors[weight].data
    places = np.stack([codes >> 4, codes & 15], -1).reshape(-1)
    values = tensors[f"{weight}.quant_map"].floats()[places]
    return (values * scales.repeat(state["blocksize"])[: len(values)]).reshape(state["shape"])


def stored_weights(folder: Path) -> dict[str, mx.array]:
    """All of the model's tensors, float32."""
    tensors = read_raw(folder / "model.safetensors")
    experts = json.loads((folder / "config.json").read_text())
    experts = experts.get("text_config", experts)["num_local_experts"]
    result: dict[str, mx.array] = {}
    for name in tensors:
        module, _, kind = name.rpartition(".")
        if kind not in ("weight", "weight_packed"):
            if kind in ("bias", "class_embedding", "positional_embedding_vlm"):
                result[name] = mx.array(tensors[name].floats())
            continue
        stem, found, rest = module.rpartition(".experts.0.")
        if found:
            modules = [f"{stem}.experts.{index}.{rest}" for index in range(experts)]
            stack = np.stack([stored_weight(tensors, one, 128) for one in modules])
            result[f"{stem}.experts.{rest}.weight"] = mx.array(stack)
        elif ".experts." not in module:
            result[f"{module}.weight"] = mx.array(stored_weight(tensors, module, 128))
    return {
        name if name.startswith(("language", "vision", "multi")) else f"language_model.{name}": one
        for name, one in result.items()
    }


@pytest.mark.parametrize("name", cases.QUANTIZED)
def test_logits_are_the_reference_s(tmp_path: Path, name: str) -> None:
    convert(QUANTIZED / name, tmp_path / "out", PLAIN)
    expected = np.load(QUANTIZED / "logits.npz")[name]
    assert_same_logits(logits(tmp_path / "out"), expected, "text")


@pytest.mark.parametrize("name", cases.QUANTIZED)
def test_unpacked_weights_are_exact(tmp_path: Path, name: str) -> None:
    """To the last bit of float32; decoded in bfloat16, they once were off by 0.4%."""
    convert(QUANTIZED / name, tmp_path / "out", PLAIN)
    found, expected = arrays(tmp_path / "out"), stored_weights(QUANTIZED / name)
    assert found.keys() == expected.keys()
    assert [key for key in found if not mx.array_equal(found[key], expected[key])] == []


@pytest.mark.parametrize("name", cases.QUANTIZED)
def test_packing_is_that_of_the_unpacked_weights(tmp_path: Path, name: str) -> None:
    bits = 3 if name == "int4_group32" else 4  # on its own grid it would not be packed anew
    convert(QUANTIZED / name, tmp_path / "out", Recipe("bfloat16", Quantization(32, bits)))
    found = arrays(tmp_path / "out")
    for key, weight in stored_weights(QUANTIZED / name).items():
        module, weight = key.removesuffix(".weight"), weight.astype(mx.bfloat16)
        if f"{module}.scales" not in found:
            assert mx.array_equal(found[key], weight)
            continue
        packed = mx.quantize(weight, 32, bits)
        for part, values in zip(("weight", "scales", "biases"), packed, strict=True):
            assert mx.array_equal(found[f"{module}.{part}"], values), key


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_keep_their_codes(tmp_path: Path, name: str) -> None:
    """Word for word, each scale spread over the groups that MLX knows."""
    report = convert(QUANTIZED / name, tmp_path / "out", KEPT)
    tensors, found = read_raw(QUANTIZED / name / "model.safetensors"), arrays(tmp_path / "out")
    checked = 0
    for key, words in tensors.items():
        module, _, kind = key.rpartition(".")
        if kind != "weight_packed":
            continue
        stem, is_expert, rest = module.rpartition(".experts.")
        index, _, projection = rest.partition(".")
        ours = f"language_model.{f'{stem}.experts.{projection}' if is_expert else module}"
        parts = [found[f"{ours}.{part}"] for part in ("weight", "scales", "biases")]
        weight, scales, biases = (part[int(index)] if is_expert else part for part in parts)
        assert np.array_equal(weight, words.words())
        scale = tensors[f"{module}.weight_scale"].floats()
        expected = scale.repeat(scales.shape[-1] // scale.shape[-1], axis=-1)
        assert np.array_equal(scales.astype(mx.float32), expected)
        if f"{module}.weight_zero_point" not in tensors:
            middle = 128 if name.startswith("int8") else 8
            assert np.array_equal(biases.astype(mx.float32), -middle * expected)
        checked += 1
    assert checked > 10
    check_loss(report, tmp_path / "out", name)


def test_mxfp4_is_kept_byte_for_byte(tmp_path: Path) -> None:
    """Codes and scales: MLX's mode is the same format."""
    report = convert(QUANTIZED / "mxfp4", tmp_path / "out", KEPT)
    tensors, found = read_raw(QUANTIZED / "mxfp4" / "model.safetensors"), arrays(tmp_path / "out")
    checked = 0
    for key, codes in tensors.items():
        module, _, kind = key.rpartition(".")
        if kind != "weight_packed":
            continue
        stem, is_expert, rest = module.rpartition(".experts.")
        index, _, projection = rest.partition(".")
        ours = f"language_model.{f'{stem}.experts.{projection}' if is_expert else module}"
        parts = [np.array(found[f"{ours}.{part}"]) for part in ("weight", "scales")]
        weight, scales = (part[int(index)] if is_expert else part for part in parts)
        assert weight.tobytes() == codes.data.tobytes()
        assert scales.tobytes() == tensors[f"{module}.weight_scale"].data.tobytes()
        checked += 1
    assert checked > 10
    table = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert (table["mode"], table["bits"], table["group_size"]) == ("mxfp4", 4, 32)
    assert not report.quality.tensors  # no value was rounded
    expected = np.load(QUANTIZED / "logits.npz")["mxfp4"]
    assert_same_logits(logits(tmp_path / "out"), expected, "text")


def check_loss(report: Report, out: Path, name: str) -> None:
    """None is measured and none is there; except for zero points, whose products with the scale
    are rounded to 16 bits.
    """
    expected = np.load(QUANTIZED / "logits.npz")[name]
    errors = report.quality.tensors.values()
    if "zero_points" not in name:
        assert set(errors) == {0.0}
        assert_same_logits(logits(out), expected, "text")
        return
    assert 0 < max(errors) < 0.005
    # Not the largest: a token may be sent to another expert.
    assert 0 < np.median(np.abs(logits(out) - expected)) < 0.05


@pytest.mark.parametrize("block_bytes", [1, 777])
@pytest.mark.parametrize("name", ["fp8_block", "int4_group64_zero_points"])
def test_any_cut_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block_bytes: int
) -> None:
    """Rows that begin inside a block of scales, or inside a word of zero points."""
    for index, recipe in enumerate((PLAIN, KEPT)):
        convert(QUANTIZED / name, tmp_path / f"whole {index}", recipe)
        with monkeypatch.context() as context:
            context.setattr(plan_module, "BLOCK_BYTES", block_bytes)
            convert(QUANTIZED / name, tmp_path / f"cut {index}", recipe)
        assert same(tmp_path / f"whole {index}", tmp_path / f"cut {index}")


@pytest.mark.slow
@pytest.mark.parametrize("block_bytes", [1, 100, 1000, 3333, 12345])
@pytest.mark.parametrize("name", cases.QUANTIZED)
def test_any_cut_of_any_format_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block_bytes: int
) -> None:
    for index, recipe in enumerate((PLAIN, KEPT, FOUR_BITS)):
        convert(QUANTIZED / name, tmp_path / f"whole {index}", recipe)
        with monkeypatch.context() as context:
            context.setattr(plan_module, "BLOCK_BYTES", block_bytes)
            convert(QUANTIZED / name, tmp_path / f"cut {index}", recipe)
        assert same(tmp_path / f"whole {index}", tmp_path / f"cut {index}")


def test_experts_of_several_packings(tmp_path: Path) -> None:
    """One left unpacked, as mixed-precision checkpoints may, one with zero points."""
    source = Path(shutil.copytree(QUANTIZED / "int4_group32", tmp_path / "source"))
    tensors = read_raw(source / "model.safetensors")
    module = "model.layers.0.feed_forward.experts.{}.up_proj"
    plain = bfloat16(stored_weight(tensors, module.format(1), None))
    for part in ("packed", "scale", "shape"):
        del tensors[f"{module.format(1)}.weight_{part}"]
    tensors[f"{module.format(1)}.weight"] = plain
    out, groups = tensors[f"{module.format(2)}.weight_scale"].shape
    zeros = np.full((out // 8, groups), 0x12345678, np.uint32)
    tensors[f"{module.format(2)}.weight_zero_point"] = Raw(
        "I32", zeros.shape, zeros.reshape(-1).view(np.uint8)
    )
    write_raw(source / "model.safetensors", tensors)
    convert(source, tmp_path / "out", PLAIN)
    found, expected = arrays(tmp_path / "out"), stored_weights(source)
    assert all(mx.array_equal(found[key], expected[key]) for key in expected)
    convert(source, tmp_path / "kept", KEPT)
    name = "language_model.model.layers.0.feed_forward.experts.up_proj"
    kept = arrays(tmp_path / "kept")
    assert kept[f"{name}.weight"].dtype == mx.bfloat16
    assert kept[f"{name.replace('up_proj', 'gate_proj')}.weight"].dtype == mx.uint32


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("is_text_only", [False, True])
@pytest.mark.parametrize("experts", [dict, one_by_one])
def test_plain_formats(
    tmp_path: Path, dtype: str, is_text_only: bool, experts: Callable[[dict], dict]
) -> None:
    config = tiny.config("scout", num_hidden_layers=2, no_rope_layers=[1, 0])
    if is_text_only:
        config = tiny.text_only(config)
    weights = {
        name: weight.astype(np.float16).astype(np.float32) if dtype == "F16" else weight
        for name, weight in tiny.tensors(config).items()
    }
    source = tiny.write_checkpoint(tmp_path / "source", config, experts(weights), dtype, 2)
    convert(source, tmp_path / "out", PLAIN)
    expected = expected_arrays(weights)
    if is_text_only:
        expected = {f"language_model.{name}": array for name, array in expected.items()}
    found = arrays(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(mx.array_equal(found[name], expected[name]) for name in expected)


MLX_RECIPES = {
    "plain": Recipe("bfloat16", None),
    "4 bits": FOUR_BITS,
    "mxfp4": Recipe("bfloat16", Quantization(32, 4, "mxfp4")),
    "mixed": Recipe(
        "bfloat16",
        Quantization(32, 3),
        high=Quantization(64, 6),
        rules=(parse_rule("*.q_proj=8:32:mxfp8"), parse_rule("*.k_proj=16")),
    ),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny.config("scout", num_hidden_layers=3, no_rope_layers=[1, 1, 0])
    folder = tmp_path_factory.mktemp("plain")
    return tiny.write_checkpoint(folder, config, tiny.tensors(config), "BF16")


@pytest.mark.parametrize("name", MLX_RECIPES)
def test_mlx_folders(source: Path, tmp_path: Path, name: str) -> None:
    """Kept as they are, unpacked to what runs, packed anew as what runs would be."""
    first, kept, dense, again = (tmp_path / one for one in ("first", "kept", "dense", "again"))
    convert(source, first, MLX_RECIPES[name])
    assert open_source(first).layout.startswith("MLX layout")
    convert(first, kept, KEPT)
    assert same(first, kept)
    assert json.loads((first / "config.json").read_text()) == json.loads(
        (kept / "config.json").read_text()
    )
    convert(first, dense, PLAIN)
    assert not any(key.endswith(".scales") for key in arrays(dense))
    assert_same_logits(logits(dense), logits(first), "text")
    convert(first, again, Recipe("float32", Quantization(32, 2)))
    weights, found = arrays(dense), arrays(again)
    module = "language_model.model.layers.1.feed_forward.experts.up_proj"
    parts = (found[f"{module}.{part}"] for part in ("weight", "scales", "biases"))
    packed = mx.quantize(weights[f"{module}.weight"], 32, 2)
    for part, expected in zip(parts, packed, strict=True):
        assert mx.array_equal(part, expected)


@pytest.mark.parametrize("recipe", [KEPT, PLAIN], ids=["kept", "unpacked"])
def test_a_folder_of_mlx_vlm(tmp_path: Path, recipe: Recipe) -> None:
    """Its router, packed too, stays so: unpacked in 16 bits it would choose other experts."""
    convert(VLM_FOLDER, tmp_path / "out", recipe)
    router = "language_model.model.layers.0.feed_forward.router.scales"
    assert (router in arrays(tmp_path / "out")) == recipe.keeps
    expected = np.load(VLM_FOLDER / "logits.npz")["text"]
    assert_same_logits(logits(tmp_path / "out", mx.array(cases.text_ids(60))), expected[0], "text")


def test_layouts_are_named() -> None:
    named = {name: open_source(QUANTIZED / name).layout for name in cases.QUANTIZED}
    assert named["fp8_tensor"].endswith("float-quantized, FP8, experts one by one")
    assert named["fp8_block"] == "Hugging Face layout, fp8, FP8, experts one by one"
    assert "pack-quantized, packed integers" in named["int4_group32"]
