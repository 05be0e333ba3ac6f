"""Damage to a prompt cache is found, wherever it is; files without checksums are still read."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.cache.prompt_file import PromptFile, save_prompt_file
from mlx_llama4.errors import CheckpointError
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.quantization import KVQuantization
from tests.cache.filled import IDENTITY, filled, text


@pytest.fixture(scope="module", params=[None, KVQuantization(8, 64)], ids=["plain", "packed"])
def saved(
    request: pytest.FixtureRequest,
    golden_model: Callable[[str], Llama4],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Llama4]:
    path, model = tmp_path_factory.mktemp("saved") / "a.safetensors", golden_model("scout")
    if request.param and model.config.text.head_dim % 64:
        request.param = None
    save_prompt_file(path, filled(model, text(70), request.param), IDENTITY, conversation=["a"])
    return path, model


def read(path: Path, model: Llama4) -> None:
    file = PromptFile(path)
    file.load(model.make_cache(file.quantization), mx.float32)


def parts(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]


def test_a_flipped_bit_anywhere_is_found(saved: tuple[Path, Llama4], tmp_path: Path) -> None:
    """Seeded places in the header, and in every array."""
    source, model = saved
    read(source, model)
    data, (header, _) = source.read_bytes(), parts(source)
    start = 8 + int.from_bytes(data[:8], "little")
    chance, places = random.Random(0), []
    places += [chance.randrange(8, start) for _ in range(60)]
    for name, entry in header.items():
        if name != "__metadata__":
            places += [start + chance.randrange(*entry["data_offsets"]) for _ in range(2)]
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << chance.randrange(8)
        (tmp_path / "b.safetensors").write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"b\.safetensors"):
            read(tmp_path / "b.safetensors", model)


def rewritten(path: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("change", ["offsets", "bytes", "held", "dropped"])
def test_well_formed_files_with_other_contents(
    saved: tuple[Path, Llama4], tmp_path: Path, change: str
) -> None:
    source, model = saved
    header, data = parts(source)
    keys = [name for name in sorted(header) if name.endswith(("keys", "keys.codes"))]
    sizes = {name: np.subtract(*header[name]["data_offsets"]) for name in keys}
    first = next(name for name in keys if [*sizes.values()].count(sizes[name]) > 1)
    second = next(name for name in keys if name != first and sizes[name] == sizes[first])
    one, other = header[first], header[second]
    (a, b), (c, d) = one["data_offsets"], other["data_offsets"]
    if change == "offsets":
        one["data_offsets"], other["data_offsets"] = [c, d], [a, b]
    elif change == "bytes":
        swapped = bytearray(data)
        swapped[a:b], swapped[c:d] = data[c:d], data[a:b]
        data = bytes(swapped)
    elif change == "held":
        header["__metadata__"]["held"] = "69"
    else:
        del header["__metadata__"]["checksums"]
        header["__metadata__"]["checksum"] = ""
    rewritten(tmp_path / "b.safetensors", header, data)
    with pytest.raises(CheckpointError, match="is damaged; make it again"):
        read(tmp_path / "b.safetensors", model)


def test_files_without_checksums_are_read(saved: tuple[Path, Llama4], tmp_path: Path) -> None:
    source, model = saved
    assert PromptFile(source).has_checksums
    header, data = parts(source)
    del header["__metadata__"]["checksums"]
    rewritten(tmp_path / "b.safetensors", header, data)
    assert not PromptFile(tmp_path / "b.safetensors").has_checksums
    read(tmp_path / "b.safetensors", model)


def test_only_the_owner_may_read_it(saved: tuple[Path, Llama4]) -> None:
    assert saved[0].stat().st_mode & 0o777 == 0o600
