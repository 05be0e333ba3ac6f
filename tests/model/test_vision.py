"""The vision tower's arithmetic, which is arranged for speed, beside what it must equal."""

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from mlx_llama4.config import VisionConfig, parse_config
from mlx_llama4.model import vision as vision_tower
from mlx_llama4.model.cpu_layout import UnpackingLinear, lay_out_for_cpu
from mlx_llama4.model.linear import SLICE_ROWS, Linear
from mlx_llama4.model.rope import VisionRope
from mlx_llama4.model.vision import VisionAttention, VisionMLP, fused_head_dim
from tests import tiny

ON_CPU = mx.default_device() == mx.cpu


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "shape", [(1,), (7,), (1, 1), (SLICE_ROWS,), (2, SLICE_ROWS + 1), (3, 5, 37)]
)
def test_linear_is_linear(shape: tuple[int, ...], bias: bool) -> None:
    layer = Linear(48, 40, bias)
    x = mx.random.normal((*shape, 48), key=mx.random.key(0))
    ours, plain = np.array(layer(x)), np.array(nn.Linear.__call__(layer, x))
    assert ours.shape == (*shape, 40)
    assert np.abs(ours - plain).max() <= 1e-5 * np.abs(plain).max()


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_linear_in_16_bits_is_mlx_s(dtype: mx.Dtype) -> None:
    layer = Linear(48, 40)
    layer.set_dtype(dtype)
    x = mx.random.normal((2, 77, 48), key=mx.random.key(0)).astype(dtype)
    assert layer(x).dtype == dtype
    assert mx.array_equal(layer(x), nn.Linear.__call__(layer, x))


def test_weights_of_the_tower_stay_as_they_are_and_packed_ones_are_unpacked() -> None:
    mlp = VisionMLP(64, 96)
    nn.quantize(mlp, 32, 4, class_predicate=lambda path, _: path == "fc2")
    weight = mlp.fc1.weight
    lay_out_for_cpu(mlp)
    assert type(mlp.fc1) is Linear and mlp.fc1.weight is weight
    assert type(mlp.fc2) is UnpackingLinear


def _vision(**changes: int) -> VisionConfig:
    raw = tiny.config("scout")
    raw["vision_config"] |= changes
    vision = parse_config(raw).vision
    assert vision is not None
    return vision


def test_rope_turns_pairs_by_column_then_row() -> None:
    vision = _vision()
    side, heads = vision.patches_per_side, vision.num_attention_heads
    head_dim = vision.hidden_size // heads
    x = np.random.default_rng(0).standard_normal((1, side * side + 1, heads, head_dim))
    turned = np.array(VisionRope(vision)(mx.array(x.astype(np.float32))))
    quarter = head_dim // 4
    rates = vision.rope_theta ** (-np.arange(quarter) / quarter)
    row, column = np.divmod(np.arange(side * side), side)
    angles = np.concatenate([np.outer(column + 1, rates), np.outer(row + 1, rates)], axis=-1)
    angles = np.concatenate([angles, np.zeros((1, 2 * quarter))])[:, None]
    expected = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    np.testing.assert_allclose(turned[..., ::2], expected.real, atol=1e-5)
    np.testing.assert_allclose(turned[..., 1::2], expected.imag, atol=1e-5)


def test_padded_heads_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of 88 in 96, as on Metal."""
    vision = _vision(hidden_size=176, num_attention_heads=2, intermediate_size=704)
    attention = VisionAttention(vision, VisionRope(vision))
    x = mx.random.normal((2, vision.patches_per_side**2 + 1, 176), key=mx.random.key(0))
    monkeypatch.setattr(vision_tower, "fused_head_dim", lambda head_dim: head_dim)
    plain = attention(x)
    monkeypatch.setattr(vision_tower, "fused_head_dim", lambda head_dim: 96)
    np.testing.assert_allclose(np.array(attention(x)), np.array(plain), atol=1e-6)


@pytest.mark.skipif(not ON_CPU, reason="what a GPU's kernels take is another question")
def test_heads_are_not_padded_on_the_cpu() -> None:
    assert fused_head_dim(88) == 88


def test_heads_are_padded_on_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    assert [fused_head_dim(width) for width in (16, 64, 88, 128, 130)] == [64, 64, 96, 128, 130]
