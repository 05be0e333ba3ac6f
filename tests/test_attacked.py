"""Model folders that a stranger changed, from a seeded table of mutations: each is refused in one
printable line, or read as what it says. Nothing else is raised, and no data are taken for others.

More of them are marked slow. Templates and tokenizers have their own in tests/prompt/.
"""

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_llama4.checkpoint.open import open_source
from mlx_llama4.checkpoint.safetensors import read_header
from mlx_llama4.convert.plan import make_plan
from mlx_llama4.errors import InputError
from mlx_llama4.opening import open_folder
from mlx_llama4.planning.inspection import inspect_folder
from tests.convert.folders import FOUR_BITS
from tests.golden.v0_1.source import HERE

MODEL = HERE / "model"
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "a", "\x1b[2J\x07", "\u202e", "a" * 100_000, "../../etc/passwd", [], [[]],
    [1], ["a"], [None], [[1]], [-1] * 50, {}, {"a": {}}, {"model_type": "llama4"}, [{}],
]  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value, with each of its keys."""
    found, left = [], [value]
    while left:
        one = left.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one))
        found += [(one, key) for key in keys]
        left += [one[key] for key in keys if isinstance(one[key], dict | list)]
    return found


def mutate_json(value: Any, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        found = places(value)
        if not found:
            return
        holder, key = chance.choice(found)
        other, from_key = chance.choice(found)
        kind = chance.randrange(6)
        if kind == 0 and isinstance(holder, dict):
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[chance.choice(["\x1b[31m", "a" * 5000, "quantization", key + "x"])] = holder[key]
        elif kind == 2 and isinstance(holder[key], int) and not isinstance(holder[key], bool):
            holder[key] += chance.choice([-1, 1, 7, 2**40])
        elif kind == 3:
            holder[key] = copy.deepcopy(other[from_key])
        else:
            holder[key] = copy.deepcopy(chance.choice(VALUES))


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 3])):
        start = chance.randrange(len(changed) or 1)
        kind = chance.randrange(4)
        if kind == 0 and changed:
            changed[start] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del changed[start : start + chance.randint(1, 60)]
        elif kind == 2:
            changed[start:start] = chance.choice([b"[" * 5000, b"\x1b", b"{", b'"', b"9" * 5000])
        else:
            del changed[start:]
    return bytes(changed)


def refused_well(work: Callable[[], object]) -> bool:
    try:
        work()
    except InputError as refusal:
        text = str(refusal)
        assert text and text.isprintable() and len(text) <= 2000
        return True
    return False


def attack(model: Path, name: str, count: int, seed: int) -> int:
    """Mutate one of the files `count` times; return how many were refused."""
    chance, file = random.Random(seed), model / name
    original, refused = file.read_bytes(), 0
    for _ in range(count):
        if chance.random() < 0.75:
            value = json.loads(original)
            mutate_json(value, chance)
            file.write_text(json.dumps(value))
        else:
            file.write_bytes(mutate_bytes(original, chance))
        inspected = refused_well(lambda: inspect_folder(model))
        opened = refused_well(lambda: open_folder(model))
        planned = refused_well(lambda: make_plan(open_source(model), FOUR_BITS))
        refused += inspected or opened or planned
    file.write_bytes(original)
    return refused


FILES = ("config.json", "model.safetensors.index.json", "generation_config.json",
         "tokenizer_config.json")  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_json_files(model: Path, name: str) -> None:
    refused = attack(model, name, 25, 0)
    assert refused > 3 or name == "generation_config.json"


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_json_files(model: Path, name: str) -> None:
    attack(model, name, 500 if name == "config.json" else 150, 1)


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]


def attack_headers(folder: Path, count: int, seed: int) -> None:
    """What is accepted has the same bytes for each name that is left as it was."""
    chance, file = random.Random(seed), folder / "model.safetensors"
    original = (MODEL / "model-00005-of-00005.safetensors").read_bytes()
    file.write_bytes(original)
    before = {tensor.name: tensor for tensor in read_header(file)}
    for _ in range(count):
        kind = chance.randrange(4)
        if kind == 0:
            header, data = header_of(original)
            mutate_json(header, chance)
            text = json.dumps(header).encode()
            changed = len(text).to_bytes(8, "little") + text + data
        elif kind == 1:
            length = int.from_bytes(original[:8], "little") + chance.choice(
                [-9, -8, -1, 1, 8, 2**50]
            )
            changed = length.to_bytes(8, "little") + original[8:]
        elif kind == 2:
            changed = original + bytes(chance.randint(1, 9))
        else:
            changed = original[:8] + mutate_bytes(original[8:2000], chance) + original[2000:]
        file.write_bytes(changed)
        if refused_well(lambda: read_header(file)):
            continue
        assert kind in (0, 3)
        moved = len(changed) - len(original)
        for tensor in read_header(file):
            known = before.get(tensor.name)
            if known and (known.dtype, known.shape) == (tensor.dtype, tensor.shape) and kind == 3:
                assert tensor.offset == known.offset + moved


def test_headers(tmp_path: Path) -> None:
    attack_headers(tmp_path, 300, 0)


@pytest.mark.slow
def test_many_headers(tmp_path: Path) -> None:
    attack_headers(tmp_path, 3000, 1)


@pytest.mark.parametrize("shard", ["a" * 300, "é" * 200, "a\0b", "a\x1b", "\ud800", "a\nb"])
def test_shards_that_no_system_can_look_for(model: Path, shard: str) -> None:
    file = model / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["a"] = shard
    file.write_text(json.dumps(index))
    with pytest.raises(InputError, match="which cannot be a file's name"):
        open_source(model)
