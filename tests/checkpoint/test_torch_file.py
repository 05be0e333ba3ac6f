"""Files of torch.save: what they hold, and hostile ones, which run nothing."""

import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_llama4.checkpoint.meta.torch_file import read_torch_file
from mlx_llama4.checkpoint.safetensors import Checkpoint
from mlx_llama4.errors import CheckpointError
from tests.torch_files import (
    BYTES_IO,
    EMPTY_DICT,
    FALSE,
    NONE,
    named,
    number,
    numbers,
    program,
    several,
    storage,
    tensor,
    text,
    write_archive,
    write_torch_file,
)

WEIGHTS = {
    "a": np.arange(24, dtype=np.float32).reshape(4, 3, 2),
    "b": np.ones(5, np.float32),
    "scalar": np.float32(7).reshape(()),
    "empty": np.ones((0, 4), np.float32),
}


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_torch_file(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 500
    return message


def of_program(folder: Path, pickled: bytes) -> Path:
    return write_archive(folder / "hostile.pth", pickled, [bytes(96), bytes(96)])


def of_entries(folder: Path, **entries: bytes) -> Path:
    return of_program(folder, program(entries))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_tensors_and_their_bytes(tmp_path: Path, dtype: str) -> None:
    path = write_torch_file(tmp_path / "t.pth", WEIGHTS, dtype, {"x._extra_state": BYTES_IO})
    tensors = read_torch_file(path)
    assert [(one.name, one.shape, one.dtype) for one in tensors] == [
        (name, weight.shape, dtype) for name, weight in WEIGHTS.items()
    ]
    checkpoint = Checkpoint(tmp_path, {tensor.name: tensor for tensor in tensors})
    data = checkpoint.read(checkpoint.tensors["a"], 1, 3)
    expected = WEIGHTS["a"][1:3]
    if dtype == "BF16":
        found = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        found = data.view(np.float16 if dtype == "F16" else np.float32)
    assert np.array_equal(found.reshape(2, 3, 2), expected)
    assert tensors[0].offset % 64 == 0  # by a padding that only the local header has


def test_float8_and_views(tmp_path: Path) -> None:
    """Two views of one storage, and a type that comes with an untyped storage."""
    entries = {
        "f8": tensor("1", "F8_E4M3", (2, 3)),
        "low": tensor("0", "F32", (2, 2)),
        "high": tensor("0", "F32", (5,), first=4),
    }
    tensors = {one.name: one for one in read_torch_file(of_entries(tmp_path, **entries))}
    assert (tensors["f8"].dtype, tensors["f8"].nbytes) == ("F8_E4M3", 6)
    assert tensors["high"].offset - tensors["low"].offset == 16


def test_strides_of_axes_with_one_entry(tmp_path: Path) -> None:
    """torch leaves any number there."""
    path = of_entries(tmp_path, a=tensor("0", "F32", (1, 3), (77, 1)))
    assert read_torch_file(path)[0].shape == (1, 3)


def test_extra_states_are_not_looked_at(tmp_path: Path) -> None:
    states = {f"layers.{index}._extra_state": state for index, state in enumerate([NONE, BYTES_IO])}
    assert read_torch_file(of_entries(tmp_path, **states)) == []


class Runs:
    """Leaves a trace if it is unpickled."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "function", [os.system, eval, exec, getattr, __import__, os.open], ids=lambda one: one.__name__
)
def test_nothing_is_run(tmp_path: Path, function: Any, protocol: int) -> None:
    trace = tmp_path / "trace"
    value = {"a": Runs(function, f"touch {trace}")}
    path = of_program(tmp_path, pickle.dumps(value, protocol))
    message = refused(path)
    assert "do not trust it" in message or "uses the instruction" in message
    assert not trace.exists()


@pytest.mark.parametrize(
    "name",
    [
        "posix.system",
        "builtins.eval",
        "__builtin__.getattr",
        "torch.load",
        "torch._utils._rebuild_tensor",
        "torch.FloatTensor",
        "collections.OrderedDict.fromkeys",
        "io.open",
        "x" * 10_000,
    ],
)
def test_other_names(tmp_path: Path, name: str) -> None:
    message = refused(of_entries(tmp_path, a=named(f"m.{name}" if "." not in name else name)))
    assert "which no checkpoint needs; do not trust it" in message


def test_allowed_names_are_not_called_freely(tmp_path: Path) -> None:
    for function in ("torch.FloatStorage", "torch.float8_e4m3fn", "collections.OrderedDict"):
        call = named(function) + several(number(2**60)) + b"R"
        assert "which torch.save does not" in refused(of_entries(tmp_path, a=call))
    assert "calls something that is not a function" in refused(
        of_entries(tmp_path, a=number(3) + several() + b"R")
    )


DAMAGED = {
    "no end": b"\x80\x02}",
    "nothing": b"",
    "empty stack": b"\x80\x02.",
    "two on the stack": b"\x80\x02}}.",
    "no mark": b"\x80\x02}u.",
    "memo that is not there": b"\x80\x02j\xff\xff\xff\xff.",
    "not UTF-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "odd items": b"\x80\x02}(X\x01\x00\x00\x00au.",
    "unknown instruction": b"\x80\x02\xfe.",
}


@pytest.mark.parametrize("pickled", DAMAGED.values(), ids=DAMAGED)
def test_damaged_pickles(tmp_path: Path, pickled: bytes) -> None:
    assert "'consolidated/data.pkl' is damaged" in refused(of_program(tmp_path, pickled))


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02N.", "holds something that is not tensors by name"),
        (b"\x80\x02}K\x01Ns.", "has a name of type int"),
        (b"\x80\x02}((tq\x00tNs.", "has a name of type tuple"),
        (b"\x80\x02NX\x01\x00\x00\x00aNs.", "puts items into something that is not a dict"),
        (b"\x80\x02}X\x01\x00\x00\x00aNsX\x01\x00\x00\x00aNs.", "holds 'a' twice"),
        (b"\x80\x02NNb.", "sets attributes of something that has none"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "uses the instruction LONG4"),
        (b"\x80\x02X\xff\xff\xff\xffabc.", "is truncated"),
        (b"\x80\x02\x8a\xff1.", "is truncated"),
        (b"\x80\x02cos\nsystem", "asks for 'os.system'"),
        (b"\x80\x02" + b"(" * 3_000_000 + b".", "describes far more than a checkpoint has"),
    ],
)
def test_pickles_of_something_else(tmp_path: Path, pickled: bytes, message: str) -> None:
    assert message in refused(of_program(tmp_path, pickled))


@pytest.mark.slow
def test_deep_nesting(tmp_path: Path) -> None:
    """No recursion: tuples or calls, one in another, are only not a tensor."""
    path = of_entries(tmp_path, a=b")" + b"\x85" * 500_000)
    assert "'a' is not a tensor" in refused(path)
    functions = named("_codecs.encode") + b"q\x00" + b"h\x00" * 200_000
    path = of_entries(tmp_path, a=functions + b")R" + b"\x85R" * 200_000)
    assert "'a' is not a tensor" in refused(path)


def test_a_dict_in_itself(tmp_path: Path) -> None:
    path = of_program(tmp_path, b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.")
    assert "'a' is not a tensor" in refused(path)


def rebuilt(*arguments: bytes) -> bytes:
    return named("torch._utils._rebuild_tensor_v2") + several(*arguments) + b"R"


STORAGE = storage("0", "F32", 24)
SHAPE, STRIDES = numbers((2, 3)), numbers((3, 1))
REST = (FALSE, EMPTY_DICT)
HOSTILE_TENSORS = {
    "negative offset": rebuilt(STORAGE, number(-1), SHAPE, STRIDES, *REST),
    "negative size": rebuilt(STORAGE, number(0), numbers((-2, 3)), STRIDES, *REST),
    "huge size": rebuilt(STORAGE, number(0), numbers((2**900, 3)), STRIDES, *REST),
    "bool for a size": rebuilt(STORAGE, FALSE, SHAPE, STRIDES, *REST),
    "text for a size": rebuilt(STORAGE, number(0), several(text("2")), numbers((1,)), *REST),
    "number for a shape": rebuilt(STORAGE, number(0), number(2), STRIDES, *REST),
    "strides too few": rebuilt(STORAGE, number(0), SHAPE, numbers((1,)), *REST),
    "axes too many": rebuilt(STORAGE, number(0), numbers((1,) * 9), numbers((1,) * 9), *REST),
    "arguments too few": rebuilt(STORAGE, number(0), SHAPE, STRIDES),
    "no storage": rebuilt(number(0), number(0), SHAPE, STRIDES, *REST),
    "storage not there": rebuilt(storage("7", "F32", 24), number(0), SHAPE, STRIDES, *REST),
    "id of a number": rebuilt(number(0) + b"Q", number(0), SHAPE, STRIDES, *REST),
    "short id": rebuilt(several(text("storage")) + b"Q", number(0), SHAPE, STRIDES, *REST),
    "id of another kind": rebuilt(
        several(text("module"), named("torch.FloatStorage"), text("0"), text("cpu"), number(1))
        + b"Q",
        number(0),
        SHAPE,
        STRIDES,
        *REST,
    ),
    "storage of no type": rebuilt(
        several(text("storage"), named("io.BytesIO"), text("0"), text("cpu"), number(1)) + b"Q",
        number(0),
        SHAPE,
        STRIDES,
        *REST,
    ),
}


@pytest.mark.parametrize("value", HOSTILE_TENSORS.values(), ids=HOSTILE_TENSORS)
def test_hostile_tensors(tmp_path: Path, value: bytes) -> None:
    assert "the entry of 'weight' is damaged" in refused(of_entries(tmp_path, weight=value))


def test_name_with_a_line_break(tmp_path: Path) -> None:
    path = of_program(tmp_path, program({"a\nb": tensor("0", "F32", (2,))}))
    assert r"the entry of 'a\nb' is damaged" in refused(path)


@pytest.mark.parametrize("strides", [(1, 2), (4, 1), (0, 1), (3, 2)])
def test_not_contiguous(tmp_path: Path, strides: tuple[int, int]) -> None:
    path = of_entries(tmp_path, weight=tensor("0", "F32", (2, 3), strides))
    assert f"'weight' of shape [2, 3] is not contiguous (strides {list(strides)})" in refused(path)


@pytest.mark.parametrize(("shape", "first"), [((25,), 0), ((24,), 1), ((2,), 23), ((2**62,), 0)])
def test_beyond_the_storage(tmp_path: Path, shape: tuple[int, ...], first: int) -> None:
    """Storages have 96 bytes, whatever the id says."""
    path = of_entries(tmp_path, weight=tensor("0", "F32", shape, first=first))
    assert f"'weight' of shape {list(shape)} reaches beyond the 96 bytes" in refused(path)


@pytest.mark.parametrize("first", [0, 1, 3])
def test_overlaps(tmp_path: Path, first: int) -> None:
    one, other = tensor("0", "F32", (4,)), tensor("0", "F32", (4,), first=first)
    assert "overlaps another" in refused(of_entries(tmp_path, one=one, other=other))


def test_compressed(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    write_archive(path, program({}), [bytes(96)], zipfile.ZIP_DEFLATED)
    assert "is compressed or encrypted" in refused(path)


def test_old_format(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
    assert "in the format of torch before 1.6, which is not supported" in refused(path)


@pytest.mark.parametrize("data", [b"", b"PK", b"GGUF", bytes(1000)])
def test_other_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(data)
    assert "is not a torch.save file" in refused(path)


def test_absent_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.pth").startswith("cannot read")


def test_archives_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b/data.pkl", program({}))
    assert "has 0 entries data.pkl" in refused(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data.pkl", program({}))
        archive.writestr("b/data.pkl", program({}))
    assert "has 2 entries data.pkl" in refused(path)


def test_big_endian(tmp_path: Path) -> None:
    path = tmp_path / "big.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", program({}))
        archive.writestr("a/byteorder", b"big")
    assert "big-endian" in refused(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_storage_twice(tmp_path: Path) -> None:
    path = of_entries(tmp_path, a=tensor("0", "F32", (24,)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("consolidated/data/0", bytes(96))
    assert "'consolidated/data/0' is there twice" in refused(path)


def test_entry_longer_than_the_file(tmp_path: Path) -> None:
    path = of_entries(tmp_path, a=tensor("0", "F32", (24,)))
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    at = data.index(b"consolidated/data/1", directory) - 46
    data[at + 20 : at + 28] = struct.pack("<II", 10**6, 10**6)  # stored and full size
    path.write_bytes(data)
    assert "'consolidated/data/1' is truncated" in refused(path)


def test_every_truncation(tmp_path: Path) -> None:
    whole = write_torch_file(tmp_path / "whole.pth", WEIGHTS).read_bytes()
    path = tmp_path / "cut.pth"
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        refused(path)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_change_of_bytes(tmp_path: Path, data: st.DataObject) -> None:
    """Reads as something within the file or is refused; nothing else."""
    path = write_torch_file(tmp_path / "t.pth", WEIGHTS, "BF16", {"x._extra_state": BYTES_IO})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        tensors = read_torch_file(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
        return
    assert all(0 <= one.offset <= one.offset + one.nbytes <= len(content) for one in tensors)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_change_of_the_pickle(tmp_path: Path, data: st.DataObject) -> None:
    """As above, past the checksum that would notice most of it."""
    entries = {"a": tensor("0", "F32", (4, 6)), "b": tensor("1", "BF16", (48,))}
    content = bytearray(program(entries | {"x._extra_state": BYTES_IO}))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = of_program(tmp_path, bytes(content))
    try:
        tensors = read_torch_file(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
        return
    size = path.stat().st_size
    assert all(0 <= one.offset <= one.offset + one.nbytes <= size for one in tensors)
