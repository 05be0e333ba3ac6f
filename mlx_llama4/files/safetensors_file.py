"""Writes arrays to a safetensors file, one after the other, completely or not at all."""

import contextlib
import fcntl
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import mlx.core as mx

from mlx_llama4.errors import OutputError, RunError
from mlx_llama4.files.disk import check_room, check_writable, free_bytes
from mlx_llama4.files.durable import MAX_CALL_BYTES, sync_file, sync_path
from mlx_llama4.files.mlx_arrays import STORED_DTYPES, array_bytes
from mlx_llama4.files.safetensors_header import safetensors_header

# The metadata's key for CRC-32s, 8 hexadecimal digits each: first that of the header, with zeros
# for all of these digits, then those of the arrays' bytes in the data's order.
CHECKSUMS = "checksums"
NO_CHECKSUM = "0" * 8


def write_safetensors(
    path: Path, arrays: Mapping[str, mx.array], metadata: Mapping[str, str]
) -> int:
    """Writes the file; returns its size in bytes. Arrays are evaluated and released one at a time,
    and checksums are added to the metadata.

    An existing file stays as it is until the new one is on the disk. If two processes write the
    same file, one waits for the other. Raises OutputError if it cannot be written there, RunError
    if writing fails on the way.
    """
    described = {name: (STORED_DTYPES[array.dtype], array.shape) for name, array in arrays.items()}
    unknown = " ".join([NO_CHECKSUM] * (len(arrays) + 1))
    header = safetensors_header(described, {**metadata, CHECKSUMS: unknown})
    nbytes = len(header) + sum(array.nbytes for array in arrays.values())
    check_place(path, nbytes)
    partial = _partial(path)
    try:
        with _claimed(partial) as file:
            try:
                _write(file, header)
                checksums = [zlib.crc32(header)]
                for array in arrays.values():
                    data = array_bytes(array)
                    checksums.append(zlib.crc32(data))
                    _write(file, data)
                known = " ".join(f"{checksum:08x}" for checksum in checksums)
                os.pwrite(file, known.encode(), header.index(unknown.encode()))
                sync_file(file)
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        sync_path(path.parent)
    except OSError as failure:
        raise RunError(f"cannot write {path}: {failure.strerror or failure}") from None
    return nbytes


def checksums_of(
    header: bytes, metadata: Mapping[str, str], names: Sequence[str]
) -> dict[str, int]:
    """Name → CRC-32 of the array's bytes, by a file's metadata; nothing if it has no checksums.

    header: everything up to the data. names: of all arrays, in the data's order. Raises ValueError
    if the header is not as it was written.
    """
    text = metadata.get(CHECKSUMS)
    if text is None:
        return {}
    first, *others = (int(word, 16) for word in text.split(" "))
    unknown = " ".join([NO_CHECKSUM] * (len(names) + 1))
    if len(text) != len(unknown) or zlib.crc32(_replaced(header, text, unknown)) != first:
        raise ValueError("the header's checksum is wrong")
    return dict(zip(names, others, strict=True))


def _replaced(header: bytes, text: str, other: str) -> bytes:
    return header.replace(text.encode(), other.encode(), 1)


def load_safetensors(path: Path) -> dict[str, mx.array]:
    """Name → array, read from the disk when it is evaluated."""
    # MLX's stub names the results for all formats and options.
    return cast("dict[str, mx.array]", mx.load(str(path), format="safetensors"))


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[int]:
    """The file, open, empty and ours alone. What a killed process left in it is thrown away."""
    while True:
        # Conversations are for their owner's eyes.
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with contextlib.suppress(OSError):  # some network volumes know no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is(path, file):
                os.fchmod(file, 0o600)
                os.ftruncate(file, 0)
                yield file
                return
        finally:
            os.close(file)


def _is(path: Path, file: int) -> bool:
    """Is that still the open file's path? Its former holder may have renamed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def check_place(path: Path, nbytes: int = 0) -> None:
    """Raises OutputError if a file of that size cannot be written there."""
    folder = path.absolute().parent
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give the name of a file")
        if path.exists() and not path.is_file():  # such as /dev/null, which would be replaced
            raise OutputError(f"{path} is not an ordinary file; give the name of one")
        if not folder.is_dir():
            raise OutputError(f"{folder} is not a folder; create it first")
        check_writable(folder)
        free = free_bytes(folder)
        if _partial(path).is_file():  # what a killed process left is overwritten
            free += _partial(path).stat().st_size
    except OSError as failure:
        raise OutputError(f"cannot write {path}: {failure.strerror or failure}") from None
    check_room(path, nbytes, free)


def _write(file: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view[:MAX_CALL_BYTES]) :]
