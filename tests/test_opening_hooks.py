"""What training and ranks ask of a load: the plain model, and a part of it."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_llama4.checkpoint.safetensors import open_checkpoint
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.errors import CheckpointError
from mlx_llama4.model.cpu_layout import UnpackingLinear
from mlx_llama4.model.llama4 import ATTENTION_STEP, Llama4
from mlx_llama4.opening import load, load_model
from mlx_llama4.quantization import Quantization
from tests.golden import cases
from tests.tolerance import assert_same_logits

IDS = mx.array(cases.text_ids(60))  # longer than a chunk
PACKINGS = {"float32": None, "4 bits": Quantization(32, 4)}


@pytest.fixture(scope="module", params=["scout", "maverick"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=PACKINGS)
def folder(
    request: pytest.FixtureRequest,
    name: str,
    golden_folder: Callable[[str], Path],
    tmp_path_factory,
) -> Path:
    packing = PACKINGS[request.param]
    if packing is None:
        return golden_folder(name)
    packed = tmp_path_factory.mktemp("packed") / name
    convert(golden_folder(name), packed, Recipe("float32", packing))
    return packed


@pytest.fixture(scope="module")
def whole(folder: Path) -> Llama4:
    return load_model(folder, mx.float32)


def test_plain_parameters_are_the_folder_s_tensors(folder: Path) -> None:
    stored = mx.load(str(folder / "model.safetensors"))
    model = load_model(folder, mx.float32, arrange=False)
    parameters = dict(tree_flatten(model.parameters()))
    assert parameters.keys() == stored.keys()
    assert all(mx.array_equal(parameters[key], stored[key]) for key in stored)
    assert all(memoryview(array).c_contiguous for array in parameters.values())
    assert not any(isinstance(module, UnpackingLinear) for module in model.modules())


def test_a_plain_model_s_logits_are_the_arranged_one_s(folder: Path, whole: Llama4) -> None:
    plain = load_model(folder, mx.float32, arrange=False)
    assert_same_logits(plain(IDS), whole(IDS), "text")


def test_load_takes_both_too(demo_folder: Path) -> None:
    seen: list[bool] = []

    def look(model: Llama4) -> None:
        seen.extend("q_proj" in layer.self_attn for layer in model.language_model.model.layers)

    model, _ = load(demo_folder, prepare=look)
    assert len(seen) == len(model.config.text.layers) and all(seen)
    assert all("qkv_proj" in layer.self_attn for layer in model.language_model.model.layers)
    model, _ = load(demo_folder, arrange=False)
    assert all("q_proj" in layer.self_attn for layer in model.language_model.model.layers)


RANKS = 2
# Of the width of a gated MLP, as far as the ranks' parts reach; packed rows divide at 32.
CUTS = {96: (0, 64, 96), 160: (0, 96, 160)}


def keep(module: nn.Module, axis: int, start: int, stop: int, total: int) -> None:
    """Cut all parameters of a linear layer, packed or not. axis: -2 for outputs, -1 for inputs, of
    which there are `total` before packing.
    """
    for part, array in module.parameters().items():
        length = array.shape[axis]
        first, last = start * length // total, stop * length // total
        cut = array[..., first:last, :] if axis == -2 else array[..., first:last]
        module[part] = mx.contiguous(cut)


def part_of(rank: int) -> Callable[[Llama4], None]:
    """Leaves a rank's heads and its part of every gated MLP's width."""

    def prepare(model: Llama4) -> None:
        text = model.config.text
        heads, kv_heads = text.num_attention_heads // RANKS, text.num_key_value_heads // RANKS
        for layer in model.language_model.model.layers:
            attention = layer.self_attn
            for module in (attention.q_proj, attention.k_proj, attention.v_proj):
                keep(module, -2, rank, rank + 1, RANKS)
            keep(attention.o_proj, -1, rank, rank + 1, RANKS)
            attention.num_heads, attention.num_kv_heads = heads, kv_heads
            forward = layer.feed_forward
            if "router" in forward:
                narrow(forward.experts, text.intermediate_size, rank)
                narrow(forward.shared_expert, text.intermediate_size, rank)
            else:
                narrow(forward, text.intermediate_size_mlp, rank)
        local = replace(text, num_attention_heads=heads, num_key_value_heads=kv_heads)
        model.config = replace(model.config, text=local)

    return prepare


def narrow(gated: nn.Module, width: int, rank: int) -> None:
    start, stop = CUTS[width][rank : rank + 2]
    keep(gated.gate_proj, -2, start, stop, width)
    keep(gated.up_proj, -2, start, stop, width)
    keep(gated.down_proj, -1, start, stop, width)


def summed_logits(ranks: list[Llama4], ids: mx.array) -> mx.array:
    """As ranks compute them: partial outputs are summed after each half of a layer."""
    first = ranks[0].language_model
    x = first.model.embed(ids)
    caches = [model.make_cache() for model in ranks]
    for index, whole in enumerate(first.model.layers):
        layers = [model.language_model.model.layers[index] for model in ranks]
        normed = whole.input_layernorm(x)
        x = x + sum(
            layer.self_attn(normed, cache[index], ATTENTION_STEP)
            for layer, cache in zip(layers, caches, strict=True)
        )
        normed = whole.post_attention_layernorm(x)
        x = x + sum(layer.feed_forward(normed) for layer in layers)
    return first.lm_head(first.model.norm(x))


@pytest.mark.parametrize("arrange", [True, False])
def test_ranks_partial_outputs_sum_to_the_whole(folder: Path, whole: Llama4, arrange: bool) -> None:
    ranks = [
        load_model(folder, mx.float32, arrange=arrange, prepare=part_of(rank))
        for rank in range(RANKS)
    ]
    for model in ranks:
        attention = model.language_model.model.layers[0].self_attn
        assert ("qkv_proj" in attention) == arrange
        if arrange:  # half of 4 heads and of 2 · 2, of 16 each
            assert attention.qkv_proj.weight.shape[0] == (2 + 2 * 1) * 16
    assert_same_logits(summed_logits(ranks, IDS), whole(IDS), "text")


def test_a_rank_that_is_cut_elsewhere_shows(folder: Path, whole: Llama4) -> None:
    """The same part twice is not the whole."""
    ranks = [load_model(folder, mx.float32, prepare=part_of(0)) for _ in range(RANKS)]
    with pytest.raises(AssertionError):
        assert_same_logits(summed_logits(ranks, IDS), whole(IDS), "text")


def test_a_load_tells_of_the_part_s_bytes_alone(folder: Path, whole: Llama4) -> None:
    told: list[tuple[int, int]] = []
    model = load_model(
        folder, mx.float32, on_load=lambda *how: told.append(how), prepare=part_of(0)
    )
    part, total = (
        sum(array.nbytes for _, array in tree_flatten(one.parameters())) for one in (model, whole)
    )
    assert told[-1] == (part, part) and part < 0.8 * total


def test_a_parameter_that_is_replaced_is_never_read(folder: Path, tmp_path: Path) -> None:
    """Its bytes are gone from the file, which is cut off where they begin."""
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    checkpoint = open_checkpoint(copy)
    last = max(checkpoint.tensors.values(), key=lambda tensor: tensor.offset)

    def prepare(model: Llama4) -> None:
        os.truncate(last.file, last.offset)
        shape = dict(tree_flatten(model.parameters()))[last.name].shape
        model.update(tree_unflatten([(last.name, mx.ones(shape))]))

    model = load_model(copy, mx.float32, arrange=False, prepare=prepare)
    assert (dict(tree_flatten(model.parameters()))[last.name] == 1).all()
    with pytest.raises((CheckpointError, RuntimeError)):
        load_model(copy, mx.float32)
