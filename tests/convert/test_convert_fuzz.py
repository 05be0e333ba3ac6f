"""Random damage to small checkpoints of several formats: noticed, or no more than itself.

A conversion of a damaged source must end in one of our errors with nothing written, or give the
undamaged result except for the very tensors that the damage changed.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.checkpoint.open import open_source
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.convert.search import pack_codes
from mlx_llama4.errors import Llama4Error
from mlx_llama4.quantization import Quantization
from tests import tiny
from tests.checkpoint.quantized import one_by_one
from tests.convert.folders import arrays
from tests.proofs import scaled
from tests.raw_safetensors import Raw, bfloat16, float32, read_raw, write_raw

CASES = scaled(1000, long=10_000)  # a format
KEPT = Recipe("bfloat16", None, keeps=True)
SIZES = {
    "num_hidden_layers": 1,
    "vocab_size": 16,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "num_local_experts": 2,
}


def quantized_config(**table: Any) -> dict[str, Any]:
    return small_config() | {"quantization_config": table}


def small_config() -> dict[str, Any]:
    return tiny.text_only(tiny.config("scout", **SIZES))


def float8(name: str, weight: np.ndarray) -> Iterator[tuple[str, Raw]]:
    codes = np.random.RandomState(len(name)).randint(0, 0x7F, weight.size).astype(np.uint8)
    yield name, Raw("F8_E4M3", weight.shape, codes)
    yield f"{name}_scale_inv", float32(np.full((1, 1), 0.01))


def integers(name: str, weight: np.ndarray) -> Iterator[tuple[str, Raw]]:
    out = len(weight)
    codes = np.random.RandomState(len(name)).randint(0, 16, weight.shape).astype(np.uint32)
    for part, words in (("packed", codes), ("zero_point", codes[: out // 8 * 8, :1].T)):
        packed = np.ascontiguousarray(pack_codes(mx.array(np.resize(words, (len(words), 32))), 4))
        if part == "zero_point":
            packed = np.ascontiguousarray(packed[:, : out // 8].T)
        yield f"{name}_{part}", Raw("I32", packed.shape, packed.reshape(-1).view(np.uint8))
    yield f"{name}_scale", bfloat16(np.full((out, 1), 0.25))


def quantized(folder: Path, table: dict[str, Any], write: Callable[..., Any]) -> Path:
    tensors: dict[str, Raw] = {}
    for name, weight in one_by_one(tiny.tensors(small_config())).items():
        if ".experts." in name:
            tensors.update(write(name, np.ascontiguousarray(weight)))
        else:
            tensors[name] = bfloat16(weight)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(quantized_config(**table)))
    write_raw(folder / "model.safetensors", tensors)
    return folder


def plain(folder: Path) -> Path:
    return tiny.write_checkpoint(folder, small_config(), tiny.tensors(small_config()), "BF16")


def in_shards(folder: Path) -> Path:
    weights = one_by_one(tiny.tensors(small_config()))
    return tiny.write_checkpoint(folder, small_config(), weights, "F32", shards=3)


def blocks(folder: Path) -> Path:
    table = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    return quantized(folder, table, float8)


def zero_points(folder: Path) -> Path:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "symmetric": False}}}
    table = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    return quantized(folder, table | {"config_groups": groups}, integers)


def mlx_affine(folder: Path) -> Path:
    source = plain(folder.with_name("plain of affine"))
    convert(source, folder, Recipe("bfloat16", Quantization(32, 3)))
    return folder


def mlx_fixed(folder: Path) -> Path:
    source = plain(folder.with_name("plain of fixed"))
    convert(source, folder, Recipe("bfloat16", Quantization(32, 8, "mxfp8")))
    return folder


SOURCES = (plain, in_shards, blocks, zero_points, mlx_affine, mlx_fixed)


def flipped(blob: bytes, random: np.random.RandomState) -> bytes:
    """Some bytes changed, half of the time in the header."""
    altered = bytearray(blob)
    for _ in range(random.randint(1, 4)):
        start = 8 + int.from_bytes(blob[:8], "little")
        most = min(start, len(blob)) if random.rand() < 0.5 else len(blob)
        altered[random.randint(most)] = random.randint(256)
    return bytes(altered)


def cut(blob: bytes, random: np.random.RandomState) -> bytes:
    return blob[: random.randint(len(blob))]


def edited(blob: bytes, random: np.random.RandomState) -> bytes:
    """One entry of the header changed, its JSON still sound."""
    start = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:start])
    header.pop("__metadata__", None)
    names = sorted(header)
    name, other = (names[random.randint(len(names))] for _ in range(2))
    entry = header[name]
    numbers = [-1, 0, 1, 2, 7, 16, 31, 32, 33, 2**31, 2**63, 2**70, -(2**40)]
    match random.randint(9):
        case 0:
            del header[name]
        case 1:
            header[name + "x" if random.rand() < 0.5 else f"language_model.{name}"] = header.pop(
                name
            )
        case 2:
            header[name], header[other] = header[other], entry
        case 3:
            dtypes = [
                "BF16",
                "F16",
                "F32",
                "I32",
                "U32",
                "U8",
                "F8_E4M3",
                "F8_E5M2",
                "I64",
                "Q4",
                "",
            ]
            entry["dtype"] = dtypes[random.randint(len(dtypes))]
        case 4:
            entry["data_offsets"][random.randint(2)] += numbers[random.randint(len(numbers))]
        case 5:
            entry["data_offsets"] = header[other]["data_offsets"]
        case 6:
            shapes = [entry["shape"][::-1], [math.prod(entry["shape"])], [*entry["shape"], 1], []]
            entry["shape"] = shapes[random.randint(len(shapes))]
        case 7:
            entry["shape"][random.randint(len(entry["shape"]))] = numbers[
                random.randint(len(numbers))
            ]
        case 8:  # smaller, and consistent
            first, last = entry["data_offsets"]
            width = (last - first) // math.prod(entry["shape"])
            shapes = [[], [0], [1], [*entry["shape"][:-1], 0], entry["shape"][1:]]
            entry["shape"] = shapes[random.randint(len(shapes))]
            entry["data_offsets"] = [first, first + math.prod(entry["shape"]) * width]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + blob[start:]


def damage(folder: Path, random: np.random.RandomState) -> None:
    """Of a file with weights, mostly; else of config or index."""
    shards = sorted(folder.glob("*.safetensors"))
    others = sorted(folder.glob("*.json"))
    if random.rand() < 0.85:
        path = shards[random.randint(len(shards))]
        kind = (flipped, cut, edited, edited)[random.randint(4)]
    else:
        path = others[random.randint(len(others))]
        kind = (flipped, cut)[random.randint(2)]
    path.write_bytes(kind(path.read_bytes(), random))


def contents(folder: Path) -> dict[str, Raw]:
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in read_raw(path).items()
    }


def module_of(name: str) -> str:
    return name.rpartition(".")[0]


def touched_modules(source: Path, damaged: Path) -> set[str]:
    """Modules of the result that are made from a tensor that differs."""
    before, after = contents(source), contents(damaged)
    differing = {
        name
        for name, tensor in before.items()
        if name not in after
        or (after[name].dtype, after[name].shape) != (tensor.dtype, tensor.shape)
        or not np.array_equal(after[name].data, tensor.data)
    }
    return {
        module_of(target)
        for target, found in open_source(source).matching.sources.items()
        if differing & {tensor.name for tensor in found.tensors}
    }


@pytest.mark.slow
@pytest.mark.prove("damage")
@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_damage_is_noticed_or_no_more_than_itself(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    source, damaged, out = make(tmp_path / "source"), tmp_path / "damaged", tmp_path / "out"
    convert(source, tmp_path / "undamaged", KEPT)
    expected = arrays(tmp_path / "undamaged")
    refusals = 0
    for seed in range(CASES):
        shutil.copytree(source, damaged)
        damage(damaged, np.random.RandomState(seed))
        try:
            convert(damaged, out, KEPT)
        except Llama4Error as error:
            assert not out.exists() and str(error).isprintable(), (seed, error)
            refusals += 1
        else:
            check_success(source, damaged, out, expected, seed)
            shutil.rmtree(out)
        shutil.rmtree(damaged)
        shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)
    print(f"\n{CASES} damaged checkpoints: {refusals} refused")
    assert 0.3 * CASES < refusals < CASES  # else the damage would be none, or always fatal


def check_success(
    source: Path, damaged: Path, out: Path, expected: dict[str, mx.array], seed: int
) -> None:
    found = arrays(out)
    assert found.keys() == expected.keys(), seed
    differing = {
        module_of(name)
        for name, array in found.items()
        if array.dtype != expected[name].dtype
        or not mx.array_equal(array, expected[name], equal_nan=True)
    }
    for name, array in found.items():
        assert array.shape == expected[name].shape
        assert array.dtype in (mx.uint32, mx.uint8) or mx.isfinite(array).all().item(), (seed, name)
    if differing:
        assert differing <= touched_modules(source, damaged), (seed, differing)
