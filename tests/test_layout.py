"""Where weights lie in memory changes how fast they are, never what they are."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.stream import convert
from mlx_llama4.load import load_model
from mlx_llama4.model.layout import column_major
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
    assert memoryview(routed.self_attn.q_proj.weight).f_contiguous
    experts = routed.feed_forward.experts.down_proj.weight  # [8, 64, 96]
    assert memoryview(experts).strides == (64 * 96 * 4, 4, 64 * 4)
    # Rows are gathered from this one.
    assert memoryview(model.language_model.model.embed_tokens.weight).c_contiguous
