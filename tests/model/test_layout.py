"""Where weights lie in memory changes how fast they are, never what they are."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from mlx_llama4.convert.recipes import Recipe, parse_rule
from mlx_llama4.convert.run import convert
from mlx_llama4.model.cpu_layout import BLOCK_BYTES, UNPACK_FROM, UnpackingLinear, column_major
from mlx_llama4.model.joined import joined
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.opening import load_model
from mlx_llama4.quantization import Quantization
from tests import tiny


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (1, 2, 3, 5)])
def test_column_major_is_the_same_array(shape: tuple[int, ...]) -> None:
    array = mx.random.normal(shape, key=mx.random.key(0))
    turned = column_major(array)
    mx.eval(array, turned)
    assert np.array_equal(np.array(turned), np.array(array))
    strides = list(memoryview(array.swapaxes(-1, -2)).strides)
    assert strides[-2:] == [4, 4 * shape[-1]]
    assert list(memoryview(turned).strides)[-2:] == [4, 4 * shape[-2]]


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="the GPU's matmuls take both alike")
def test_weights_on_the_cpu_are_column_major(tmp_path: Path) -> None:
    config = tiny.config("maverick")
    source = tiny.write_checkpoint(tmp_path / "source", config, tiny.tensors(config))
    convert(source, tmp_path / "model", Recipe("float32", None))
    model = load_model(tmp_path / "model")
    dense, routed = model.language_model.model.layers[:2]
    assert memoryview(dense.feed_forward.up_proj.weight).f_contiguous
    assert memoryview(routed.self_attn.qkv_proj.weight).f_contiguous
    experts = routed.feed_forward.experts.down_proj.weight  # [8, 64, 96]
    assert memoryview(experts).strides == (64 * 96 * 4, 4, 64 * 4)
    # Rows are gathered from this one.
    assert memoryview(model.language_model.model.embed_tokens.weight).c_contiguous


PACKINGS = [("affine", 4, 64), ("affine", 8, 32), ("mxfp4", 4, 32), ("mxfp8", 8, 32)]


def _packed(outputs: int, bias: bool, packing: tuple[str, int, int], seed: int = 0):
    mode, bits, group_size = packing
    linear = nn.Linear(128, outputs, bias)
    linear.weight = mx.random.normal((outputs, 128), key=mx.random.key(seed)) / 10
    if bias:
        linear.bias = mx.random.normal((outputs,), key=mx.random.key(seed + 1))
    return nn.QuantizedLinear.from_linear(linear, group_size, bits, mode)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (1, UNPACK_FROM - 1), (1, UNPACK_FROM), (2, 3, 17)])
def test_many_rows_through_an_unpacked_weight(
    packing: tuple[str, int, int], bias: bool, shape: tuple[int, ...], monkeypatch
) -> None:
    layer = _packed(96, bias, packing)
    x = mx.random.normal((*shape, 128), key=mx.random.key(9))
    monkeypatch.setattr(
        "mlx_llama4.model.cpu_layout.BLOCK_BYTES", 128 * 4 * 40
    )  # 40, 40, 16 outputs
    found, expected = UnpackingLinear(layer)(x), layer(x)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=0, atol=2e-5)


def test_a_large_weight_is_unpacked_a_block_at_a_time() -> None:
    rows = 24 * BLOCK_BYTES // (4 * 1024)
    weight = mx.random.normal((rows, 1024), key=mx.random.key(0))
    layer = nn.QuantizedLinear(64, 64, False, 64, 4)
    layer.weight, layer.scales, layer.biases = mx.quantize(weight, 64, 4)
    del weight
    unpacking, x = UnpackingLinear(layer), mx.ones((UNPACK_FROM, 1024))
    mx.eval(unpacking.parameters(), x)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(unpacking(x))
    output = 2 * 4 * rows * UNPACK_FROM
    assert mx.get_peak_memory() - before < 5 * BLOCK_BYTES + output  # of 24


def _model(tmp_path: Path, rules: tuple = ()) -> Llama4:
    config = tiny.config("scout")
    source = tiny.write_checkpoint(tmp_path / "source", config, tiny.tensors(config))
    convert(source, tmp_path / "model", Recipe("float32", Quantization(32, 4), rules=rules))
    return load_model(tmp_path / "model", mx.float32)


def test_projections_of_one_input_are_joined(tmp_path: Path) -> None:
    model = _model(tmp_path)
    attention = model.language_model.model.layers[0].self_attn
    assert "qkv_proj" in attention and not {"q_proj", "k_proj", "v_proj"} & set(attention)
    widths = (attention.num_heads + 2 * attention.num_kv_heads) * 16
    assert attention.qkv_proj.scales.shape[0] == widths


def test_what_is_packed_otherwise_stays_apart(tmp_path: Path) -> None:
    rules = (parse_rule("*.layers.1.self_attn.k_proj=8:32"), parse_rule("*.layers.2.*.v_proj=16"))
    model = _model(tmp_path, rules)
    layers = model.language_model.model.layers
    assert ["qkv_proj" in layer.self_attn for layer in layers][:4] == [True, False, False, True]
    assert layers[2].self_attn.v_proj.weight.dtype == mx.float32


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("bias", [False, True])
def test_joined_layers_give_their_outputs_side_by_side(
    packing: tuple[str, int, int], bias: bool
) -> None:
    layers = [_packed(outputs, bias, packing, seed) for seed, outputs in enumerate((64, 16, 32))]
    x = mx.random.normal((2, 3, 128), key=mx.random.key(9))
    expected = mx.concatenate([layer(x) for layer in layers], axis=-1)
    assert mx.array_equal(joined(layers)(x), expected)
    floats = [nn.Linear(128, outputs, bias) for outputs in (8, 4)]
    expected = mx.concatenate([layer(x) for layer in floats], axis=-1)
    np.testing.assert_allclose(np.array(joined(floats)(x)), np.array(expected), atol=1e-6)
    assert joined([layers[0], floats[0]]) is None
