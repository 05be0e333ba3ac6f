"""Rules of the converter that hold for all inputs."""

import itertools
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_llama4.checkpoint.compressed import PackedIntegers
from mlx_llama4.checkpoint.fp8 import Float8
from mlx_llama4.checkpoint.layouts import BLOCK_INPUTS, BLOCK_OUTPUTS, transposed
from mlx_llama4.checkpoint.safetensors import Checkpoint, StoredTensor
from mlx_llama4.convert.pack import measured_errors, relative_error
from mlx_llama4.convert.search import pack_codes, search_affine
from mlx_llama4.convert.sizing import Choice, choose
from mlx_llama4.quantization import AFFINE_BITS, AFFINE_GROUP_SIZES, Quantization
from tests.raw_safetensors import E4M3

SEEDS = st.integers(0, 2**32 - 1)
PACKINGS = st.builds(
    Quantization, st.sampled_from(AFFINE_GROUP_SIZES), st.sampled_from(AFFINE_BITS)
)


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.sampled_from(AFFINE_BITS), st.integers(1, 4), st.sampled_from([32, 64, 192]))
def test_codes_are_packed_as_mlx_packs_them(seed: int, bits: int, rows: int, width: int) -> None:
    codes = mx.array(np.random.RandomState(seed).randint(0, 2**bits, (rows, width)), mx.uint32)
    words = pack_codes(codes, bits)
    ones = mx.ones((rows, width // 32))
    assert mx.array_equal(mx.dequantize(words, ones, 0 * ones, 32, bits), codes)
    values = mx.array(np.random.RandomState(seed).standard_normal((rows, width)), mx.float32)
    packed, _, _ = mx.quantize(values, 32, bits)
    read = mx.dequantize(packed, ones, 0 * ones, 32, bits).astype(mx.uint32)
    assert mx.array_equal(pack_codes(read, bits), packed)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=1),
    st.sampled_from(
        [0, 1, 2, BLOCK_INPUTS - 1, BLOCK_INPUTS, BLOCK_INPUTS + 1, 3 * BLOCK_INPUTS + 5]
    ),
    st.sampled_from(
        [0, 1, 2, BLOCK_OUTPUTS - 1, BLOCK_OUTPUTS, BLOCK_OUTPUTS + 1, 2 * BLOCK_OUTPUTS + 7]
    ),
    st.sampled_from([np.uint16, np.uint32]),
)
def test_transposed(outer: list[int], inputs: int, outputs: int, dtype: type) -> None:
    shape = (*outer, inputs, outputs)
    source = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    result = transposed(source)
    assert result.flags.c_contiguous and result.dtype == dtype
    assert np.array_equal(result, source.swapaxes(-1, -2))


def stored(tmp_path: Path, name: str, dtype: str, values: np.ndarray) -> StoredTensor:
    file = tmp_path / name
    file.write_bytes(values.tobytes())
    return StoredTensor(name, dtype, values.shape, file, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stored")


def rows_between(data: st.DataObject, out: int) -> tuple[int, int]:
    start = data.draw(st.integers(0, out - 1))
    return start, data.draw(st.integers(start + 1, out))


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.sampled_from([4, 8]), st.integers(1, 40), st.booleans(), st.data())
def test_any_rows_of_integers(
    folder: Path, seed: int, bits: int, out: int, has_zero_points: bool, data: st.DataObject
) -> None:
    """Of any height: the last word of zero points need not be full."""
    random = np.random.RandomState(seed)
    width, groups = 64, data.draw(st.sampled_from([1, 2]))
    codes = random.randint(0, 2**bits, (out, width)).astype(np.uint32)
    zero = np.full((out, groups), 2 ** (bits - 1))
    scale = random.uniform(-1, 1, (out, groups)).astype(np.float32)
    packed = np.array(pack_codes(mx.array(codes), bits))
    zero_point = None
    if has_zero_points:
        zero = random.randint(0, 2**bits, (out, groups))
        padded = np.zeros((-(-out // 32) * 32, groups), np.uint32)
        padded[:out] = zero
        words = np.array(pack_codes(mx.array(padded.T), bits)).T[: -(-out * bits // 32)]
        zero_point = stored(folder, "zero", "I32", np.ascontiguousarray(words))
    source = PackedIntegers(
        "w", stored(folder, "packed", "I32", packed), stored(folder, "scale", "F32", scale),
        zero_point, (out, width),
    )  # fmt: skip
    assert source.shapes == [(out, width)]
    start, stop = rows_between(data, out)
    read = source.read(Checkpoint(folder, {}), start, stop, "float32")
    (rows,) = source.decode(read, start, stop)
    each = width // groups
    exact = (codes - zero.repeat(each, 1)) * scale.repeat(each, 1).astype(np.float64)
    # One rounding of the product and one of the sum, of numbers up to 2^bits.
    assert np.abs(np.array(rows.dense()) - exact[start:stop]).max() <= 2.0**bits * 2**-22


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 20), st.integers(1, 20), st.data())
def test_any_rows_of_float8(
    folder: Path, seed: int, out: int, width: int, data: st.DataObject
) -> None:
    """Blocks of any shape, the last ones cut off."""
    random = np.random.RandomState(seed)
    block = data.draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    codes = random.choice([code for code in range(256) if code & 0x7F != 0x7F], (out, width))
    shape = (-(-out // block[0]), -(-width // block[1]))
    scale = random.uniform(0.5, 2, shape).astype(np.float32)
    source = Float8(
        "w", stored(folder, "codes", "F8_E4M3", codes.astype(np.uint8)),
        stored(folder, "scale", "F32", scale), block,
    )  # fmt: skip
    assert source.shapes == [(out, width)]
    start, stop = rows_between(data, out)
    read = source.read(Checkpoint(folder, {}), start, stop, "float32")
    (rows,) = source.decode(read, start, stop)
    expected = E4M3[codes] * scale.repeat(block[0], 0).repeat(block[1], 1)[:out, :width]
    assert np.array_equal(np.array(rows), expected[start:stop])


def test_every_float8_code() -> None:
    values = np.array(mx.from_fp8(mx.arange(256).astype(mx.uint8), mx.float32))
    assert np.array_equal(values, E4M3, equal_nan=True)


def rows_of_all_kinds(seed: int, scale: float, dtype: mx.Dtype, width: int) -> mx.array:
    """Normal, heavy-tailed, constant, all zero, one-sided, two values, one outlier."""
    random = np.random.RandomState(seed)
    normal = random.standard_normal((7, width))
    normal[1] **= 3
    normal[2] = normal[2, 0]
    normal[3] = 0
    normal[4] = np.abs(normal[4]) + 3
    normal[5] = np.where(normal[5] > 0, 1, -2)
    normal[6, 0] = 100
    return mx.array((normal * scale).astype(np.float32)).astype(dtype)


@settings(deadline=None, max_examples=80)
@given(
    SEEDS,
    PACKINGS,
    st.sampled_from([1e-30, 1e-7, 1e-4, 0.02, 1, 300, 1e12]),
    st.sampled_from([mx.bfloat16, mx.float16, mx.float32]),
)
@example(0, Quantization(32, 4), 1e-7, mx.float16)
@example(0, Quantization(32, 4), 300, mx.float16)
def test_search_is_never_worse_than_mlx(
    seed: int, packing: Quantization, scale: float, dtype: mx.Dtype
) -> None:
    if dtype == mx.float16:
        scale = min(scale, 300)
    rows = rows_of_all_kinds(seed, scale, dtype, 256)
    found = search_affine(rows, packing)
    weight, scales, biases = mx.quantize(rows, packing.group_size, packing.bits)
    assert (found.weight.shape, found.scales.dtype) == (weight.shape, dtype)
    values = rows.astype(mx.float32)
    theirs = mx.dequantize(
        weight, scales.astype(mx.float32), biases.astype(mx.float32),
        packing.group_size, packing.bits,
    )  # fmt: skip
    groups = (*rows.shape[:-1], -1, packing.group_size)
    ours, least = (
        np.array(mx.square((dense - values) / scale).reshape(groups).sum(-1))
        for dense in (found.dense(), theirs)
    )
    assert np.isfinite(ours).all()
    assert (ours <= least * (1 + 1e-3) + 1e-9).all()


def test_search_is_better_for_normal_weights() -> None:
    rows = mx.array(np.random.RandomState(0).standard_normal((64, 256)), mx.float32)
    for bits, most in ((2, 0.85), (3, 0.9), (4, 0.93), (8, 0.95)):
        plain, searched = (
            relative_error(measured_errors(rows, Quantization(64, bits), search))
            for search in (False, True)
        )
        assert searched < most * plain


LADDERS = st.lists(
    st.lists(
        st.tuples(st.integers(1, 9), st.floats(0, 10, width=16)), min_size=1, max_size=4
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(LADDERS, st.integers(0, 120))
def test_chosen_bits_against_all_choices(
    ladders: list[list[tuple[int, float]]], budget: int
) -> None:
    """Within the budget, and off the best by at most the gain of one step that did not fit."""
    named = {
        f"m{index}": [
            Choice(None, sum(step for step, _ in ladder[: upto + 1]), ladder[upto][1])
            for upto in range(len(ladder))
        ]
        for index, ladder in enumerate(ladders)
    }
    affordable = [
        sum(one.error for one in choices)
        for choices in itertools.product(*named.values())
        if sum(one.nbytes for one in choices) <= budget
    ]
    chosen = choose(named, budget)
    if not affordable:
        assert chosen is None
        return
    assert chosen.keys() == named.keys()
    assert all(one in named[module] for module, one in chosen.items())
    assert sum(one.nbytes for one in chosen.values()) <= budget
    error = sum(one.error for one in chosen.values())
    largest_step = max(ladder[0].error - min(c.error for c in ladder) for ladder in named.values())
    assert error <= min(affordable) + largest_step + 1e-9
    whole = choose(named, sum(ladder[-1].nbytes for ladder in named.values()))
    assert sum(one.error for one in whole.values()) == pytest.approx(
        sum(min(c.error for c in ladder) for ladder in named.values())
    )
