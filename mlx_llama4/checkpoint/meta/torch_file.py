"""Finds the tensors in a .pth file that torch.save wrote, without torch.

The file is a zip archive of uncompressed entries: data.pkl describes the tensors; data/0, data/1, …
are the bytes of their storages. So each tensor is a byte range of the file.
"""

import math
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from mlx_llama4.checkpoint.meta.torch_pickle import (
    DTYPES,
    PARAMETER_FUNCTION,
    TENSOR_FUNCTIONS,
    UNTYPED,
    Call,
    Named,
    PickleError,
    Stored,
    read_pickle,
)
from mlx_llama4.checkpoint.safetensors import StoredTensor
from mlx_llama4.errors import CheckpointError
from mlx_llama4.files.dtypes import ITEM_BYTES
from mlx_llama4.files.foreign import START_BYTES, stand_in

MAX_PICKLE_BYTES = 64 * 2**20
MAX_DIMENSIONS = 8
ZIP_MAGIC = b"PK\x03\x04"
LOCAL_HEADER_BYTES = 30
ENCRYPTED = 1  # of an entry's flags
EXTRA_STATE = "_extra_state"  # what some modules save beside their weights


def read_torch_file(file: Path) -> list[StoredTensor]:
    """The tensors of a state dict, in its order, without extra states.

    Raises CheckpointError for a file that is truncated, damaged or of another format, or that asks
    for anything but tensors.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            _check_format(file, stream.read(START_BYTES))
            with zipfile.ZipFile(stream) as archive:
                root = _root(file, archive)
                pickled = _read_pickle(file, archive, f"{root}/data.pkl")
                storages = _storages(file, archive, stream, f"{root}/data/")
    except OSError as failure:
        raise CheckpointError(f"cannot read {file}: {failure.strerror or failure}") from None
    # zipfile raises all of these for archives that are truncated or tampered with.
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError):
        raise CheckpointError(
            f"{file} is truncated or damaged ({size:,} bytes); download it again"
        ) from None
    tensors = [
        _tensor(file, name, value, storages)
        for name, value in pickled.items()
        if not name.endswith(EXTRA_STATE)
    ]
    _check_overlaps(file, tensors)
    return tensors


def _check_format(file: Path, start: bytes) -> None:
    if start[:1] == b"\x80":
        raise CheckpointError(
            f"{file} is in the format of torch before 1.6, which is not supported; load it with "
            "torch and save it again"
        )
    if (problem := stand_in(file, start)) is not None:
        raise CheckpointError(problem)
    if not start.startswith(ZIP_MAGIC):
        raise CheckpointError(f"{file} is not a torch.save file; download it again")


def _root(file: Path, archive: zipfile.ZipFile) -> str:
    """The folder inside the archive; its name is the writer's choice."""
    found = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    roots = [name.removesuffix("/data.pkl") for name in found if name.count("/") == 1]
    if len(roots) != 1:
        raise CheckpointError(f"{file} has {len(roots)} entries data.pkl, not one")
    order = f"{roots[0]}/byteorder"
    if order in archive.namelist() and _read_entry(file, archive, order) != b"little":
        raise CheckpointError(f"{file} was written on a big-endian machine; not supported")
    return roots[0]


def _read_pickle(file: Path, archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    try:
        pickled = read_pickle(_read_entry(file, archive, name))
    except PickleError as error:
        raise CheckpointError(f"{file}: {name!r} {error}") from None
    if not isinstance(pickled, dict):
        raise CheckpointError(f"{file} holds something that is not tensors by name")
    return pickled


def _read_entry(file: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    entry = archive.getinfo(name)
    _check_stored(file, entry)
    if entry.file_size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"{file}: {name!r} is larger than any checkpoint's; do not trust it")
    return archive.read(entry)


def _check_stored(file: Path, entry: zipfile.ZipInfo) -> None:
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & ENCRYPTED:
        raise CheckpointError(
            f"{file}: {entry.filename!r} is compressed or encrypted, which torch.save never does; "
            "download it again"
        )


def _storages(
    file: Path, archive: zipfile.ZipFile, stream: BinaryIO, prefix: str
) -> dict[str, tuple[int, int]]:
    """Key → the storage's offset in the file and its bytes."""
    size = stream.seek(0, os.SEEK_END)
    storages: dict[str, tuple[int, int]] = {}
    for entry in archive.infolist():
        if not entry.filename.startswith(prefix):
            continue
        _check_stored(file, entry)
        key = entry.filename.removeprefix(prefix)
        if key in storages:
            raise CheckpointError(f"{file}: {entry.filename!r} is there twice; download it again")
        offset = _data_offset(stream, entry)
        if offset + entry.file_size > size:
            raise CheckpointError(f"{file}: {entry.filename!r} is truncated; download it again")
        storages[key] = (offset, entry.file_size)
    return storages


def _data_offset(stream: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where an entry's data begins; its own header is padded differently from the directory's."""
    stream.seek(entry.header_offset)
    header = stream.read(LOCAL_HEADER_BYTES)
    if len(header) < LOCAL_HEADER_BYTES or header[:4] != ZIP_MAGIC:
        raise zipfile.BadZipFile
    name_bytes = int.from_bytes(header[26:28], "little")
    extra_bytes = int.from_bytes(header[28:30], "little")
    return entry.header_offset + LOCAL_HEADER_BYTES + name_bytes + extra_bytes


def _tensor(
    file: Path, name: str, value: Any, storages: dict[str, tuple[int, int]]
) -> StoredTensor:
    damaged = CheckpointError(f"{file}: the entry of {name!r} is damaged; download it again")
    if isinstance(value, Call) and value.function == PARAMETER_FUNCTION and value.arguments:
        value = value.arguments[0]
    if not isinstance(value, Call) or value.function not in TENSOR_FUNCTIONS:
        raise CheckpointError(f"{file}: {name!r} is not a tensor")
    if len(value.arguments) < 6 or not name.isprintable():
        raise damaged
    stored, first, shape, strides = value.arguments[:4]
    if not _is_size(first) or not _are_sizes(shape) or not _are_sizes(strides):
        raise damaged
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise damaged
    dtype, key = _storage(stored, value.arguments)
    if dtype is None or key not in storages:
        raise damaged
    if not _is_contiguous(shape, strides):
        raise CheckpointError(
            f"{file}: {name!r} of shape {list(shape)} is not contiguous (strides {list(strides)})"
        )
    offset, nbytes = storages[key]
    tensor = StoredTensor(name, dtype, shape, file, offset + first * ITEM_BYTES[dtype])
    if first * ITEM_BYTES[dtype] + tensor.nbytes > nbytes:
        raise CheckpointError(
            f"{file}: {name!r} of shape {list(shape)} reaches beyond the {nbytes:,} bytes that "
            "are stored for it; download it again"
        )
    return tensor


def _storage(stored: Any, arguments: tuple[Any, ...]) -> tuple[str | None, str | None]:
    """dtype and key of ("storage", class, key, device, count); None for damaged ones."""
    if not isinstance(stored, Stored) or not isinstance(stored.id, tuple) or len(stored.id) != 5:
        return None, None
    kind, of, key, _, _ = stored.id
    if kind != "storage" or not isinstance(of, Named) or not isinstance(key, str):
        return None, None
    if of.name == UNTYPED and len(arguments) > 6:
        of = arguments[6]
    return DTYPES.get(of.name) if isinstance(of, Named) else None, key


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _are_sizes(values: Any) -> bool:
    return isinstance(values, tuple) and all(map(_is_size, values))


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Is the tensor in order of memory? Strides of axes with one entry, or none, do not count."""
    return math.prod(shape) == 0 or all(
        count == 1 or stride == math.prod(shape[axis + 1 :])
        for axis, (count, stride) in enumerate(zip(shape, strides, strict=True))
    )


def _check_overlaps(file: Path, tensors: list[StoredTensor]) -> None:
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.nbytes and tensor.offset < end:
            raise CheckpointError(f"{file}: {tensor.name!r} overlaps another; download it again")
        end = max(end, tensor.offset + tensor.nbytes)
