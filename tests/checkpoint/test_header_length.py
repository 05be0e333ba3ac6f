"""A header whose length is not its own shifts all data; overlaps and holes give others' bytes."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_llama4.checkpoint.safetensors import read_header
from mlx_llama4.errors import CheckpointError
from mlx_llama4.files.safetensors_header import safetensors_header

DATA = bytes(range(24))
TENSORS = {"a": ("F32", (2, 2)), "b": ("F32", (2,))}


def with_header(path: Path, text: bytes, data: bytes) -> Path:
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def header(blanks: int) -> bytes:
    """JSON with that many blanks behind it."""
    return safetensors_header(TENSORS, {})[8:].rstrip() + b" " * blanks


@pytest.mark.parametrize("blanks", [0, 1, 7, 8, 40])
def test_any_padding_is_read(tmp_path: Path, blanks: int) -> None:
    file = with_header(tmp_path / "model.safetensors", header(blanks), DATA)
    assert [t.offset for t in read_header(file)] == [len(header(blanks)) + 8 + n for n in (0, 16)]


@pytest.mark.parametrize("less", [1, 2, 7, 8])
def test_a_length_that_is_less_than_the_padding(tmp_path: Path, less: int) -> None:
    """The JSON is whole, but what is left of the blanks would be the first values."""
    file = with_header(tmp_path / "model.safetensors", header(8), DATA)
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little") - less
    file.write_bytes(length.to_bytes(8, "little") + data[8:])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_header(file)


@pytest.mark.parametrize("extra", [b"\0", b" " * 8, DATA])
def test_bytes_behind_the_last_tensor(tmp_path: Path, extra: bytes) -> None:
    file = with_header(tmp_path / "model.safetensors", header(8), DATA + extra)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_header(file)


PLACES = {
    "overlap": ([0, 16], [8, 16]),
    "the same place": ([0, 16], [0, 8]),
    "a hole": ([0, 16], [24, 32]),
    "a hole in front": ([8, 24], [24, 32]),
    "backwards": ([16, 0], [16, 24]),
    "negative": ([-16, 0], [0, 8]),
    "longer than the shape": ([0, 16], [16, 32]),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_that_do_not_follow_each_other(tmp_path: Path, name: str) -> None:
    entries: dict[str, Any] = json.loads(header(0))
    entries["a"]["data_offsets"], entries["b"]["data_offsets"] = PLACES[name]
    size = max(max(place) for place in PLACES[name])
    text = json.dumps(entries).encode()
    file = with_header(tmp_path / "model.safetensors", text, bytes(size))
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_header(file)
