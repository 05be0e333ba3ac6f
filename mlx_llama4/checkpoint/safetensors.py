"""Reads a folder of safetensors shards: first the headers, then tensors or slices of them.

It never reads a whole file. Opening checks that every shard is there and as long as its header
says, so that nothing fails half-way.
"""

import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_llama4.errors import CheckpointError, RunError
from mlx_llama4.files.dtypes import ITEM_BYTES
from mlx_llama4.files.durable import MAX_CALL_BYTES
from mlx_llama4.files.foreign import (
    START_BYTES,
    instead_of_weights,
    stand_in,
)
from mlx_llama4.files.json_file import parse_json, read_json

INDEX_NAME = "model.safetensors.index.json"
# A file begins with the length of its header, in LENGTH_BYTES bytes.
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies. `offset` counts bytes from the start of the file."""

    name: str
    dtype: str  # as safetensors spells it: "BF16", "F32", "U32", …
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder, by name."""

    folder: Path
    tensors: dict[str, StoredTensor]

    @property
    def files(self) -> list[Path]:
        return sorted({tensor.file for tensor in self.tensors.values()})

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def read(self, tensor: StoredTensor, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Bytes of rows start … stop - 1 along the first axis, uint8 [nbytes].

        Opens the file each time: macOS lets a process hold 256, fewer than some checkpoints
        and their conversions have.
        """
        rows = tensor.shape[0] if tensor.shape else 1
        row_bytes = tensor.nbytes // max(rows, 1)
        stop = rows if stop is None else stop
        buffer = np.empty((stop - start) * row_bytes, np.uint8)
        try:
            with tensor.file.open("rb", buffering=0) as file:
                file.seek(tensor.offset + start * row_bytes)
                view = buffer.data
                while view:
                    if not (count := file.readinto(view[:MAX_CALL_BYTES])):
                        raise RunError(f"{tensor.file} became shorter while it was read")
                    view = view[count:]
        except OSError as failure:
            raise RunError(f"cannot read {tensor.file}: {failure.strerror or failure}") from None
        return buffer


def open_checkpoint(folder: Path) -> Checkpoint:
    """Every tensor of the folder's shards.

    Raises CheckpointError for missing, truncated or damaged shards, naming the file.
    """
    return assemble(folder, map(read_header, shard_files(folder)))


def assemble(folder: Path, headers: Iterable[list[StoredTensor]]) -> Checkpoint:
    """A checkpoint from the headers of its shards, checked against each other and the index."""
    tensors: dict[str, StoredTensor] = {}
    for header in headers:
        for tensor in header:
            if tensor.name in tensors:
                first = tensors[tensor.name].file.name
                raise CheckpointError(
                    f"{folder}: tensor {tensor.name} is in both {first} and {tensor.file.name}; "
                    "the folder mixes two checkpoints"
                )
            tensors[tensor.name] = tensor
    _check_index(folder, tensors)
    return Checkpoint(folder, tensors)


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint. Raises CheckpointError if one is missing."""
    names = indexed_shards(folder)
    if not names:
        names = _complete_numbering([path.name for path in folder.glob("model*.safetensors")])
    if not names:
        raise CheckpointError(
            instead_of_weights(folder)
            or f"{folder} holds no model*.safetensors files; download the weights too"
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(names)} shards missing ({_some(missing)}); "
            "download them again"
        )
    return [folder / name for name in names]


def indexed_shards(folder: Path) -> list[str]:
    """Names of the files that the index lists; none without an index."""
    index = folder / INDEX_NAME
    return sorted(set(_weight_map(index).values())) if index.is_file() else []


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of one safetensors file.

    Format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(START_BYTES)
            length = header_length(file, size, start)
            stream.seek(LENGTH_BYTES)
            header = stream.read(length)
    except OSError as failure:
        raise CheckpointError(f"cannot read {file}: {failure.strerror or failure}") from None
    return parse_header(file, size, header)


def header_length(file: Path, size: int, start: bytes) -> int:
    """Length of the JSON header. start: the first bytes of the file of `size` bytes."""
    if (problem := stand_in(file, start)) is not None:
        raise CheckpointError(problem)
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if size < LENGTH_BYTES or length > min(size - LENGTH_BYTES, MAX_HEADER_BYTES):
        raise CheckpointError(
            f"{file} is truncated or not a safetensors file ({size:,} bytes); download it again"
        )
    return length


def parse_header(file: Path, size: int, data: bytes) -> list[StoredTensor]:
    """The tensors that a JSON header describes. The file need not be there.

    size: bytes of the file. data: the header.
    """
    try:
        header = parse_json(data)
    except (ValueError, RecursionError) as failure:
        raise CheckpointError(
            f"{file} has a damaged header ({failure}); download it again"
        ) from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} has a damaged header; download it again")
    header.pop("__metadata__", None)
    end = LENGTH_BYTES + len(data)
    tensors = [_tensor(file, name, entry, end) for name, entry in header.items()]
    holes = []
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset < end:
            raise CheckpointError(f"{file}: {tensor.name} overlaps another; download it again")
        if tensor.offset > end:
            holes.append(f"{tensor.offset - end:,} bytes before {tensor.name}")
        end = tensor.offset + tensor.nbytes
    if end > size:
        raise CheckpointError(
            f"{file} is truncated: {size:,} of {end:,} bytes are there; download it again"
        )
    if holes:  # the format allows none
        raise CheckpointError(f"{file}: {holes[0]} belong to no tensor; download it again")
    if end < size:
        # A length of the header that is wrong would shift all data, and yet leave them readable.
        raise CheckpointError(
            f"{file} is longer than its header says: {size:,} bytes, not {end:,}; download it again"
        )
    return tensors


def _tensor(file: Path, name: str, entry: dict, data_start: int) -> StoredTensor:
    try:
        dtype, shape = str(entry["dtype"]), tuple(map(operator.index, entry["shape"]))
        start, stop = map(operator.index, entry["data_offsets"])
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(
            f"{file}: the entry of {name} is damaged; download it again"
        ) from None
    if not name.isprintable():
        # Messages of one line print the name; no real name has such characters.
        raise CheckpointError(f"{file} has a damaged header (name {name!r}); download it again")
    if dtype not in ITEM_BYTES:
        raise CheckpointError(f"{file}: {name} has data type {dtype!r}, which is unknown")
    tensor = StoredTensor(name, dtype, shape, file, data_start + start)
    if min((start, *shape)) < 0 or stop - start != tensor.nbytes:
        raise CheckpointError(
            f"{file}: {name} of shape {list(shape)} takes {tensor.nbytes:,} bytes, "
            f"but the header gives it {stop - start:,}; download it again"
        )
    return tensor


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; download it again")
    names = weight_map.values()
    wrong = [name for name in names if not isinstance(name, str)]
    if not wrong:  # of thousands of tensors, but few files
        wrong = [name for name in sorted(set(names)) if Path(name).name != name]
    if not wrong and (odd := [name for name in sorted(set(names)) if not _is_file_name(name)]):
        raise CheckpointError(f"{index} names a shard {odd[0]!r}, which cannot be a file's name")
    if wrong:
        # The names come from a download; they must not lead out of the folder.
        raise CheckpointError(f"{index} names a shard {wrong[0]!r} outside its folder")
    return weight_map


def _is_file_name(name: str) -> bool:
    """Can a system look for it? It would raise an error for a long name, or one with a NUL."""
    return name not in ("", "..") and name.isprintable() and len(name.encode()) <= 255


def _check_index(folder: Path, tensors: dict[str, StoredTensor]) -> None:
    index = folder / INDEX_NAME
    if index.is_file():
        absent = sorted(_weight_map(index).keys() - tensors.keys())
        if absent:
            raise CheckpointError(
                f"{folder}: the index lists {len(absent)} tensors that no shard holds "
                f"({_some(absent)}); download index and shards again"
            )


def _complete_numbering(names: list[str]) -> list[str]:
    """Adds the names that "…-00001-of-00003" implies, so that a missing shard is noticed."""
    promised = set(names)
    for name in names:
        # Five digits at most: no checkpoint has more shards, and the names cannot be trusted.
        if match := re.fullmatch(r"(.*-)(\d{1,5})(-of-)(\d{1,5})(\.safetensors)", name):
            stem, number, of, total, suffix = match.groups()
            promised |= {
                f"{stem}{index:0{len(number)}}{of}{total}{suffix}"
                for index in range(1, int(total) + 1)
            }
    return sorted(promised)


def _some(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
