"""Writing a folder of safetensors shards in place, and giving it its final name at the end.

All sizes are known before, so headers come first and every tensor has its place; parts arrive
in any order. Nothing stands under the final name until everything is there and on disk.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_llama4.convert.checkpoint import INDEX_NAME, ITEM_BYTES
from mlx_llama4.errors import OutputError, RunError

MAX_SHARD_BYTES = 5 * 10**9
# Tensor data starts at a multiple of this, the page size of Apple silicon, so that the experts
# can later be read from the file with uncached, aligned reads.
HEADER_ALIGNMENT = 16384


@dataclass(frozen=True)
class OutputTensor:
    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class FolderWriter:
    """Writes `tensors` to `<out>.partial`, which `finish` renames to `out`.

    Use as a context manager: leaving it without `finish` removes what was written.
    """

    def __init__(self, out: Path, tensors: Mapping[str, OutputTensor]):
        self.out = out
        self.folder = out.with_name(out.name + ".partial")
        self.tensors = tensors
        self._shards = _assign_shards(tensors)
        self._places: dict[str, tuple[int, int]] = {}  # name → file descriptor, byte offset
        self._descriptors: list[int] = []

    def __enter__(self) -> "FolderWriter":
        try:
            if self.folder.exists():  # left by a run that was killed
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
            for file_name, names in self._shards.items():
                self._create_shard(file_name, names)
        except OSError as failure:
            self._discard()
            raise _write_failure(self.folder, failure) from None
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self.folder.exists():
            self._discard()

    def write(self, name: str, row: int, data: bytes | memoryview) -> None:
        """Put `data` at row `row` of the first axis of tensor `name`."""
        descriptor, offset = self._places[name]
        tensor = self.tensors[name]
        position = offset + row * (tensor.nbytes // tensor.shape[0])
        view = memoryview(data).cast("B")
        try:
            while view:
                count = os.pwrite(descriptor, view, position)
                view, position = view[count:], position + count
        except OSError as failure:
            raise _write_failure(self.folder, failure) from None

    def finish(self) -> None:
        """Make everything durable and give the folder its final name, in one step."""
        try:
            self._write_index()
            for descriptor in self._descriptors:
                os.fsync(descriptor)
            self._close()
            _sync_folder(self.folder)
            self.folder.rename(self.out)
            _sync_folder(self.out.parent)
        except OSError as failure:
            raise _write_failure(self.out, failure) from None

    def _create_shard(self, file_name: str, names: list[str]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
        offset = 0
        for name in names:
            tensor = self.tensors[name]
            header[name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [offset, offset + tensor.nbytes],
            }
            offset += tensor.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(len(text) + 8) % HEADER_ALIGNMENT)
        descriptor = os.open(self.folder / file_name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        self._descriptors.append(descriptor)
        os.pwrite(descriptor, len(text).to_bytes(8, "little") + text, 0)
        os.ftruncate(descriptor, 8 + len(text) + offset)
        for name in names:
            start = header[name]["data_offsets"][0]  # type: ignore[index]
            self._places[name] = (descriptor, 8 + len(text) + start)

    def _write_index(self) -> None:
        weight_map = {name: file for file, names in self._shards.items() for name in names}
        total = sum(tensor.nbytes for tensor in self.tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / INDEX_NAME).write_text(json.dumps(index, indent=4) + "\n")

    def _close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def _discard(self) -> None:
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)


def check_destination(out: Path, nbytes: int) -> None:
    """Raises OutputError if `out` exists, cannot be created, or has no room for `nbytes`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} already exists; name another folder or remove it first")
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"cannot write to {parent}; choose a folder of your own")
    free = shutil.disk_usage(parent).free
    if free < nbytes:
        raise OutputError(
            f"{out} needs {nbytes / 1e9:.1f} GB but only {free / 1e9:.1f} GB are free on that disk"
        )


def _assign_shards(tensors: Mapping[str, OutputTensor]) -> dict[str, list[str]]:
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + tensor.nbytes > MAX_SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {
        f"model-{index:05d}-of-{len(groups):05d}.safetensors": names
        for index, names in enumerate(groups, start=1)
    }


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_failure(path: Path, failure: OSError) -> RunError:
    return RunError(f"cannot write {path}: {failure.strerror or failure}; nothing was kept")
