"""Integers whose columns are grouped by `weight_g_idx`, as GPTQ's activation order leaves them."""

import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.errors import CheckpointError
from tests.checkpoint.quantized import QUANTIZED
from tests.checkpoint.test_source_formats import KEPT, PLAIN, same, unpacked
from tests.convert.folders import arrays
from tests.raw_safetensors import Raw, read_raw, write_raw

INTEGERS = ("int4_group32", "int4_group64_zero_points", "int4_group128", "int8_channel")


def with_order(folder: Path, name: str, kind: str) -> Path:
    """The checkpoint with an order of columns for every packed tensor."""
    source = Path(shutil.copytree(QUANTIZED / name, folder))
    tensors = read_raw(source / "model.safetensors")
    random = np.random.RandomState(7)
    for key in [key for key in tensors if key.endswith("weight_shape")]:
        weight = key.removesuffix("_shape")
        width = int(tensors[key].data.view(np.int64)[1])
        groups = tensors[f"{weight}_scale"].shape[1]
        order = np.arange(width) // (width // groups)
        if kind == "shuffled":
            random.shuffle(order)
        elif kind == "beyond":
            order[3] = groups
        elif kind == "negative":
            order[3] = -1
        elif kind == "short":
            order = order[:-1]
        data = order.astype(np.int32)
        tensors[f"{weight}_g_idx"] = Raw("I32", data.shape, data.view(np.uint8))
    write_raw(source / "model.safetensors", tensors)
    return source


@pytest.mark.parametrize("name", INTEGERS)
def test_a_trivial_order_is_none(tmp_path: Path, name: str) -> None:
    convert(with_order(tmp_path / "source", name, "trivial"), tmp_path / "out", KEPT)
    convert(QUANTIZED / name, tmp_path / "plain", KEPT)
    assert same(tmp_path / "out", tmp_path / "plain")


@pytest.mark.parametrize("name", INTEGERS)
def test_a_real_order_is_decoded(tmp_path: Path, name: str) -> None:
    source = with_order(tmp_path / "source", name, "shuffled")
    convert(source, tmp_path / "out", PLAIN)
    tensors, found = read_raw(source / "model.safetensors"), arrays(tmp_path / "out")
    checked = 0
    for key in [key for key in tensors if key.endswith("_g_idx")]:
        weight = key.removesuffix("_g_idx")
        out, width = tensors[f"{weight}_shape"].data.view(np.int64)
        words = tensors[f"{weight}_packed"].words()
        bits = words.shape[1] * 32 // width
        order = tensors[key].data.view(np.int32)
        scale = tensors[f"{weight}_scale"].floats()
        zero = np.full(scale.shape, 2 ** (bits - 1))
        if f"{weight}_zero_point" in tensors:
            zero = unpacked(tensors[f"{weight}_zero_point"].words(), bits, 0, out)
        codes = unpacked(words, bits, 1, width)
        expected = ((codes - zero[:, order]) * scale[:, order]).astype(np.float32)
        stem, is_expert, rest = weight.rpartition(".experts.")
        index, _, projection = rest.partition(".")
        ours = f"language_model.{f'{stem}.experts.{projection}' if is_expert else weight}"
        values = found[ours][int(index)] if is_expert else found[ours]
        assert np.array_equal(np.array(values), expected), key
        checked += 1
    assert checked > 10


def test_a_real_order_is_packed_anew(tmp_path: Path) -> None:
    source = with_order(tmp_path / "source", "int4_group32", "shuffled")
    convert(source, tmp_path / "out", KEPT)
    key = "language_model.model.layers.0.feed_forward.experts.up_proj.weight"
    assert arrays(tmp_path / "out")[key].dtype == mx.bfloat16


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("beyond", "weight_g_idx names groups that are not there"),
        ("negative", "weight_g_idx names groups that are not there"),
        ("short", r"wrong shape: .*weight_g_idx \[63\]"),
    ],
)
def test_a_wrong_order_is_refused(tmp_path: Path, kind: str, message: str) -> None:
    source = with_order(tmp_path / "source", "int4_group32", kind)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "out", Recipe("float32", None))
