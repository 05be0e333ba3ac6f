"""Folders of shards: complete, damaged, and hostile."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_llama4.checkpoint.safetensors import INDEX_NAME, open_checkpoint, read_header
from mlx_llama4.errors import CheckpointError
from tests import tiny

WEIGHTS = {
    "a": np.arange(24, dtype=np.float32).reshape(4, 3, 2),
    "b": np.ones((5,), np.float32),
    "c": np.zeros((2, 2), np.float32),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path, {}, WEIGHTS, "F32", shards=3)


def shard(folder: Path, number: int) -> Path:
    return folder / f"model-{number:05d}-of-00003.safetensors"


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_slices(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    tensor = checkpoint.tensors["a"]
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("F32", (4, 3, 2), 96)
    data = checkpoint.read(tensor, 1, 3).view(np.float32).reshape(2, 3, 2)
    assert np.array_equal(data, WEIGHTS["a"][1:3])
    assert np.array_equal(checkpoint.read(checkpoint.tensors["b"]).view(np.float32), np.ones(5))
    assert len(checkpoint.files) == 3
    assert checkpoint.nbytes == sum(weight.nbytes for weight in WEIGHTS.values())


def test_no_weights(tmp_path: Path) -> None:
    assert "holds no model*.safetensors" in refused(tmp_path)


def test_missing_shard(folder: Path) -> None:
    shard(folder, 2).unlink()
    message = refused(folder)
    assert "1 of 3 shards missing (model-00002-of-00003.safetensors)" in message
    (folder / INDEX_NAME).unlink()
    assert refused(folder) == message


@pytest.mark.parametrize("size", [0, 7, 8, 30])
def test_truncated_header(folder: Path, size: int) -> None:
    shard(folder, 1).write_bytes(shard(folder, 1).read_bytes()[:size])
    assert "model-00001-of-00003.safetensors is truncated or not a safetensors file" in refused(
        folder
    )


def test_truncated_data(folder: Path) -> None:
    data = shard(folder, 1).read_bytes()
    shard(folder, 1).write_bytes(data[:-1])
    assert f"is truncated: {len(data) - 1:,} of {len(data):,} bytes" in refused(folder)


def test_file_that_shrinks_while_it_is_read(folder: Path) -> None:
    from mlx_llama4.errors import RunError

    checkpoint = open_checkpoint(folder)
    shard(folder, 1).write_bytes(b"")
    with pytest.raises(RunError, match="became shorter"):
        checkpoint.read(checkpoint.tensors["a"])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{not json", "damaged header"),
        (b"[1, 2]", "damaged header"),
        (b'{"a": 3}', "entry of a is damaged"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}', "entry of a is damaged"),
        (b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}', "'F99', which is"),
        (b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}', "takes 12 bytes"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}', "takes -4 bytes"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-9, -5]}}', "takes 4 bytes"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "is truncated"),
        (b'{"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}', "entry of a is"),
        (b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}', "which is unknown"),
        (b'{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 4]}}', "entry of a is"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4]}}', "entry of a is"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            b' "b": {"dtype": "F16", "shape": [1], "data_offsets": [2, 4]}}',
            "b overlaps another",
        ),
    ],
)
def test_damaged_headers(tmp_path: Path, header: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
    assert message in refused(tmp_path)


def test_names_that_come_twice(folder: Path) -> None:
    """json.loads would take the last one, and nothing would be said of the first."""
    entry = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    header = f'{{"a": {entry}, "b": {entry}, "a": {entry}}}'.encode()
    saved = shard(folder, 1).read_bytes()
    shard(folder, 1).write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
    assert "model-00001-of-00003.safetensors has a damaged header ('a' comes twice)" in refused(
        folder
    )
    shard(folder, 1).write_bytes(saved)
    name = shard(folder, 1).name
    (folder / INDEX_NAME).write_text(f'{{"weight_map": {{"a": "{name}", "a": "{name}"}}}}')
    assert "is not valid JSON ('a' comes twice)" in refused(folder)


@pytest.mark.parametrize("name", ["a\\nb", "a\\u001b[31m", "a\\u0000", "a\\ud800"])
def test_names_that_cannot_be_printed(tmp_path: Path, name: str) -> None:
    header = f'{{"{name}": {{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}}}'.encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
    message = refused(tmp_path)
    assert "has a damaged header (name 'a" in message and message.isprintable()


def test_links(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cache of the hub is a folder of links; one that leads nowhere is a missing shard."""
    elsewhere = tmp_path_factory.mktemp("blobs") / "blob"
    shard(folder, 2).rename(elsewhere)
    shard(folder, 2).symlink_to(elsewhere)
    assert len(open_checkpoint(folder).tensors) == 3
    elsewhere.unlink()
    assert "1 of 3 shards missing (model-00002-of-00003.safetensors)" in refused(folder)


def test_index_that_does_not_fit(folder: Path) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    index["weight_map"]["phantom"] = shard(folder, 1).name
    (folder / INDEX_NAME).write_text(json.dumps(index))
    assert "lists 1 tensors that no shard holds (phantom)" in refused(folder)
    (folder / INDEX_NAME).write_text("{}")
    assert "no weight_map" in refused(folder)


def test_index_cannot_leave_the_folder(folder: Path) -> None:
    for name in ("../other.safetensors", "/etc/passwd", "sub/x.safetensors", ".", 3, None):
        (folder / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": name}}))
        assert "outside its folder" in refused(folder)
    for name in ("..", "", "a\0b", "\ud800"):
        (folder / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": name}}))
        assert "which cannot be a file's name" in refused(folder)


def test_names_that_promise_too_much(tmp_path: Path) -> None:
    """Five digits of shards are believed, more are not even counted."""
    tiny.write_safetensors(tmp_path / "model-00001-of-9999999.safetensors", WEIGHTS)
    assert len(open_checkpoint(tmp_path).tensors) == 3


def test_tensor_in_two_shards(folder: Path) -> None:
    shard(folder, 2).write_bytes(shard(folder, 1).read_bytes())
    assert "is in both" in refused(folder)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_damage_is_noticed_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """No exception but ours, and no tensor outside the file."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    tiny.write_safetensors(path, WEIGHTS)
    blob = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(blob[: data.draw(st.integers(0, len(blob)))])
    try:
        tensors = read_header(path)
    except CheckpointError:
        return
    size = path.stat().st_size
    assert all(tensor.offset >= 0 and tensor.offset + tensor.nbytes <= size for tensor in tensors)


def test_large_tensors_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few bytes a call may give."""
    values = np.arange(1000, dtype=np.float32).reshape(100, 10)
    tiny.write_safetensors(tmp_path / "model.safetensors", {"x": values})
    monkeypatch.setattr("mlx_llama4.checkpoint.safetensors.MAX_CALL_BYTES", 7)
    checkpoint = open_checkpoint(tmp_path)
    found = checkpoint.read(checkpoint.tensors["x"], 3, 90)
    assert np.array_equal(found.view(np.float32).reshape(-1, 10), values[3:90])
