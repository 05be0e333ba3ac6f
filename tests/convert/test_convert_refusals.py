"""Sources that are damaged or not what they say: refused by name, nothing under the final name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.errors import CheckpointError, ConfigError, Llama4Error, RunError
from mlx_llama4.quantization import Quantization
from tests import tiny
from tests.checkpoint.quantized import QUANTIZED
from tests.raw_safetensors import Raw, bfloat16, read_raw, write_raw

Change = Callable[[dict[str, Raw]], object]

PLAIN = Recipe("bfloat16", None)
FLOAT16 = Recipe("float16", None)
EXPERT = "model.layers.1.feed_forward.experts.{}.up_proj.weight"
LINEAR = EXPERT.format(2)
FIRST, SECOND, LAST, EXTRA = (EXPERT.format(index) for index in (0, 1, 3, 4))
DENSE_SCALE = "model.layers.0.feed_forward.up_proj.weight_scale_inv"
MLX_LINEAR = "language_model.model.layers.0.feed_forward.experts.up_proj"


def refused(source: Path, kind: type[Llama4Error], recipe: Recipe = PLAIN) -> str:
    """What is said: one line, and nothing is there."""
    out = source.parent / "out"
    with pytest.raises(kind) as caught:
        convert(source, out, recipe)
    assert not out.exists()
    if kind is not RunError:
        assert not list(source.parent.glob("out*"))
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)
    return str(caught.value)


def changed(folder: Path, root: Path, change: Change) -> Path:
    source = Path(shutil.copytree(folder, root / "source"))
    tensors = read_raw(source / "model.safetensors")
    change(tensors)
    write_raw(source / "model.safetensors", tensors)
    return source


def put(name: str, index: int, data: bytes) -> Change:
    """Change bytes of a tensor."""

    def change(tensors: dict[str, Raw]) -> None:
        altered = tensors[name].data.copy()
        altered[index : index + len(data)] = np.frombuffer(data, np.uint8)
        tensors[name] = Raw(tensors[name].dtype, tensors[name].shape, altered)

    return change


def retyped(name: str, dtype: str) -> Change:
    return lambda tensors: tensors.update(
        {name: Raw(dtype, tensors[name].shape, tensors[name].data)}
    )


def reshaped(name: str, *shape: int) -> Change:
    return lambda tensors: tensors.update(
        {name: Raw(tensors[name].dtype, shape, tensors[name].data)}
    )


def without(*names: str) -> Change:
    return lambda tensors: [tensors.pop(name) for name in names]


def beside(name: str, other: str) -> Change:
    """A tensor too many, with the contents of another."""
    return lambda tensors: tensors.update({name: tensors[other]})


ONE = bfloat16(np.ones((1, 1)))
NAN, INFINITY, HUGE = (np.float32(value).tobytes() for value in (np.nan, np.inf, 1e38))


@pytest.mark.parametrize(
    ("folder", "name", "index", "data", "recipe"),
    [
        ("fp8_channel", f"language_model.{LINEAR}", 5, b"\x7f", PLAIN),
        ("fp8_channel", f"language_model.{LINEAR}", 5, b"\xff", PLAIN),
        ("fp8_channel", f"language_model.{LINEAR}_scale", 6, NAN[2:], PLAIN),
        ("fp8_channel", f"language_model.{LINEAR}_scale", 6, INFINITY[2:], PLAIN),
        ("fp8_tensor", f"{LINEAR}_scale", 0, NAN, PLAIN),
        ("fp8_tensor", f"{LINEAR}_scale", 0, HUGE, PLAIN),
        ("fp8_tensor", f"{LINEAR}_scale", 0, np.float32(200).tobytes(), FLOAT16),
        ("fp8_block", f"{SECOND}_scale_inv", 4, INFINITY, PLAIN),
        ("int4_group32", f"{LINEAR}_scale", 2, NAN[2:], PLAIN),
        ("int4_group32", f"{LINEAR}_scale", 2, INFINITY[2:], PLAIN),
        ("int4_group64_zero_points", f"{LINEAR}_scale", 2, HUGE[2:], PLAIN),
        # 128 times as much is the bias, once -inf in float16.
        ("int8_channel", f"{LINEAR}_scale", 0, np.float32(600).tobytes()[2:], FLOAT16),
        ("int4_group128", "model.norm.weight", 0, NAN[2:], PLAIN),
    ],
)
def test_values_that_are_none(
    tmp_path: Path, folder: str, name: str, index: int, data: bytes, recipe: Recipe
) -> None:
    source = changed(QUANTIZED / folder, tmp_path, put(name, index, data))
    message = refused(source, RunError, recipe)
    assert f"{source / 'model.safetensors'}: {name} has values" in message


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize(
    ("packing", "part", "data"),
    [
        (Quantization(32, 4), "scales", NAN[2:]),
        (Quantization(32, 4), "biases", INFINITY[2:]),
        (Quantization(32, 4, "mxfp4"), "scales", b"\xff"),
        (Quantization(32, 8, "mxfp8"), "scales", b"\xff"),
        (Quantization(32, 8, "mxfp8"), "weight", b"\x7f"),
        (Quantization(16, 4, "nvfp4"), "scales", b"\x7f"),
    ],
)
def test_values_of_mlx_that_are_none(
    tmp_path: Path, packing: Quantization, part: str, data: bytes, keeps: bool
) -> None:
    config = tiny.config("scout", num_hidden_layers=1)
    plain = tiny.write_checkpoint(tmp_path / "plain", config, tiny.tensors(config))
    convert(plain, tmp_path / "packed", Recipe("bfloat16", packing))
    source = changed(tmp_path / "packed", tmp_path, put(f"{MLX_LINEAR}.{part}", 8, data))
    recipe = Recipe("bfloat16", None, keeps=keeps)
    assert f"{MLX_LINEAR}.{part} has values" in refused(source, RunError, recipe)


@pytest.mark.parametrize("search", [False, True])
def test_values_too_far_apart_to_be_packed(tmp_path: Path, search: bool) -> None:
    """Each fits bfloat16, their range does not: scales once were infinite, and the result NaN."""
    config = tiny.text_only(tiny.config("scout", num_hidden_layers=1))
    weights = tiny.tensors(config)
    weights["lm_head.weight"][3, :2] = 3e38, -3e38
    source = tiny.write_checkpoint(tmp_path / "source", config, weights)
    recipe = Recipe("bfloat16", Quantization(32, 4), search=search)
    assert "lm_head.weight has values too large to be packed" in refused(source, RunError, recipe)


@pytest.mark.parametrize(
    ("folder", "change", "message"),
    [
        ("int4_group32", without(f"{LINEAR}_scale"), f"missing: {LINEAR}_scale;"),
        ("int4_group32", without(f"{LINEAR}_packed"), f"missing: {LINEAR};"),
        ("int4_group64_zero_points", without(f"{LINEAR}_zero_point"), f"missing: {LINEAR}_zero"),
        ("fp8_tensor", without(f"{LINEAR}_scale"), f"missing: {LINEAR}_scale;"),
        ("fp8_block", without(f"{FIRST}_scale_inv"), f"missing: {FIRST}_scale"),
        ("fp8_tensor", without(LINEAR), f"missing: {LINEAR};"),
        (
            "int4_group32",
            without(*(f"{LAST}_{part}" for part in ("packed", "scale"))),
            f"missing: {LAST};",
        ),
        ("int4_group32", beside(f"{EXTRA}_packed", f"{LINEAR}_packed"), "unknown: model"),
        ("fp8_tensor", beside(EXTRA, LINEAR), f"unknown: {EXTRA};"),
        ("int4_group32", beside(f"{LINEAR}_g_idx", f"{LINEAR}_scale"), "_g_idx [96, 2];"),
        ("int4_group32", beside(f"{LINEAR}_zero_point", f"{LINEAR}_scale"), "_zero_point [96, 2];"),
        ("fp8_tensor", beside(f"{LINEAR}_zero_point", f"{LINEAR}_scale"), "unknown: model"),
        ("int4_group32", beside("model.norm.weight_packed", f"{LINEAR}_packed"), "norm.weight"),
        (
            "int4_group32",
            beside("model.layers.0.feed_forward.experts.up_proj.weight_packed", f"{LINEAR}_packed"),
            "experts.up_proj.weight_scale",
        ),
        ("int4_group32", retyped(f"{LINEAR}_packed", "F32"), f"wrong type: {LINEAR}_packed F32;"),
        ("int4_group32", retyped(f"{LINEAR}_packed", "U32"), f"wrong type: {LINEAR}_packed U32;"),
        ("fp8_tensor", retyped(f"{LINEAR}_scale", "I32"), f"wrong type: {LINEAR}_scale I32;"),
        ("fp8_tensor", retyped(LINEAR, "U8"), f"unknown: {LINEAR}_scale;"),
        ("int4_group32", reshaped(f"{LINEAR}_scale", 2, 96), f"shape: {LINEAR}_scale [2, 96];"),
        ("int4_group32", reshaped(f"{LINEAR}_scale", 96, 2, 1), f"{LINEAR}_scale [96, 2, 1];"),
        ("int4_group32", reshaped(f"{LINEAR}_scale", 192), f"shape: {LINEAR}_scale [192];"),
        ("int4_group32", reshaped(f"{LINEAR}_packed", 48, 16), f"{LINEAR}_packed [48, 16];"),
        ("fp8_tensor", reshaped(LINEAR, 32, 128), f"shape: {LINEAR} [32, 128];"),
        ("fp8_block", reshaped(DENSE_SCALE, 4), "_inv [4]"),
        (
            "int4_group32",
            lambda tensors: tensors.update({f"{LINEAR}_scale": bfloat16(np.empty((96, 0)))}),
            f"shape: {LINEAR}_scale [96, 0];",
        ),
        (
            "fp8_block",
            lambda tensors: tensors.update({f"{FIRST}_scale_inv": ONE}),
            f"shape: {FIRST}_scale_inv [1, 1];",
        ),
    ],
)  # fmt: skip
def test_tensors_that_are_not_what_they_should_be(
    tmp_path: Path, folder: str, change: Change, message: str
) -> None:
    source = changed(QUANTIZED / folder, tmp_path, change)
    assert message in refused(source, CheckpointError)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("scales", without, "unknown"),  # the biases, of which nobody knows without scales
        ("biases", without, "missing"),
        ("weight", lambda name: retyped(name, "I32"), "wrong type"),
        ("scales", lambda name: retyped(name, "U8"), "wrong type"),
        ("weight", lambda name: reshaped(name), "wrong shape"),
        ("scales", lambda name: reshaped(name, 4, 96, 1, 2), "wrong shape"),
    ],
)
def test_tensors_of_mlx(
    tmp_path: Path, part: str, change: Callable[[str], Change], message: str
) -> None:
    config = tiny.config("scout", num_hidden_layers=1)
    plain = tiny.write_checkpoint(tmp_path / "plain", config, tiny.tensors(config))
    convert(plain, tmp_path / "packed", Recipe("bfloat16", Quantization(32, 4)))
    shutil.copytree(tmp_path / "packed", tmp_path / "source")
    source, name = tmp_path / "source", f"{MLX_LINEAR}.{part}"
    tensors = read_raw(source / "model.safetensors")
    if message == "wrong shape" and part == "weight":  # a scalar: four bytes, no rows
        tensors[name] = Raw("U32", (), tensors[name].data[:4])
    elif message == "wrong type" and part == "scales":
        tensors[name] = Raw("U8", tensors[name].shape, tensors[name].data[::2])
    else:
        change(name)(tensors)
    write_raw(source / "model.safetensors", tensors)
    (source / "model.safetensors.index.json").unlink()
    said = refused(source, CheckpointError)
    assert message in said and MLX_LINEAR in said


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantized by gptq, which is not supported"),
        ({"quant_method": "awq"}, "quantized by awq, which"),
        ({"quant_method": "fp8", "format": "x"}, "quantized by fp8 x, which"),
        ({"quant_method": "compressed-tensors"}, "quantized by compressed-tensors, which"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "marlin-24, which"),
        ({"quant_method": None}, "unnamed method"),
        ({"quant_method": ["fp8"]}, "is not supported"),
    ],
)
def test_formats_that_are_not_known(tmp_path: Path, table: dict[str, object], message: str) -> None:
    source = Path(shutil.copytree(QUANTIZED / "fp8_tensor", tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": table}))
    assert message in refused(source, CheckpointError)


@pytest.mark.parametrize(
    "table",
    [
        {"weight_block_size": [0, 128]},
        {"weight_block_size": [128.5, 128]},
        {"weight_block_size": [128]},
        {"weight_block_size": "128"},
        {"weight_block_size": [-1, 128]},
        {"config_groups": {"a": {"weights": {"block_structure": [0, 0]}}}},
    ],
)
def test_blocks_that_are_none(tmp_path: Path, table: dict[str, object]) -> None:
    source = Path(shutil.copytree(QUANTIZED / "fp8_block", tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"].pop("weight_block_size")
    config["quantization_config"] |= table
    (source / "config.json").write_text(json.dumps(config))
    assert "quantization_config: block is" in refused(source, ConfigError)


@pytest.mark.parametrize("groups", ["x", [1], {"a": None}, {"a": {"weights": "int4"}}, {"a": []}])
def test_groups_that_say_nothing(tmp_path: Path, groups: object) -> None:
    """The tensors tell what they are."""
    source = Path(shutil.copytree(QUANTIZED / "int4_group32", tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"]["config_groups"] = groups
    (source / "config.json").write_text(json.dumps(config))
    convert(source, tmp_path / "out", PLAIN)


@pytest.mark.parametrize(
    "table", [{"bits": 7}, {"group_size": 48}, {"mode": "mxfp4"}, {"mode": ["affine"]}, {"bits": 0}]
)
def test_packings_that_mlx_does_not_know(tmp_path: Path, table: dict[str, object]) -> None:
    config = tiny.config("scout", num_hidden_layers=1)
    config["quantization"] = {"bits": 4, "group_size": 64} | table
    source = tiny.write_checkpoint(tmp_path / "source", config, tiny.tensors(config))
    assert "config.json: quantization" in refused(source, ConfigError)
