"""Writing a folder of safetensors shards in place, and giving it its final name at the end.

All sizes are known before, so headers come first and every tensor has its place; parts arrive
in any order. Nothing stands under the final name until everything is there and on disk.
"""

import fcntl
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_llama4.convert.checkpoint import INDEX_NAME, ITEM_BYTES
from mlx_llama4.errors import OutputError, RunError
from mlx_llama4.memory import human_bytes

MAX_SHARD_BYTES = 5 * 10**9
# Tensor data starts at a multiple of this, the page size of Apple silicon, so that the experts
# can later be read from the file with uncached, aligned reads.
HEADER_ALIGNMENT = 16384
LOCK_NAME = "conversion.lock"


@dataclass(frozen=True)
class OutputTensor:
    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class FolderWriter:
    """Writes `tensors` to `<out>.partial`, which `finish` renames to `out`.

    Use as a context manager: leaving it without `finish` removes what was written. Raises
    OutputError if that folder is not ours or another run is at work in it.
    """

    def __init__(self, out: Path, tensors: Mapping[str, OutputTensor]):
        self.out = out
        self.folder = partial_folder(out)
        self.tensors = tensors
        self._shards = _assign_shards(tensors)
        self._places: dict[str, tuple[Path, int]] = {}  # name → file, byte offset
        self._lock: int | None = None  # file descriptor, while the folder is ours

    def __enter__(self) -> "FolderWriter":
        try:
            self._claim()
            for file_name, names in self._shards.items():
                self._create_shard(self.folder / file_name, names)
        except OSError as failure:
            self._discard()
            raise _write_failure(self.folder, failure) from None
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._discard()

    def write(self, name: str, row: int, data: bytes | memoryview) -> None:
        """Put `data` at row `row` of the first axis of tensor `name`."""
        file, offset = self._places[name]
        tensor = self.tensors[name]
        try:
            with file.open("r+b") as stream:
                stream.seek(offset + row * (tensor.nbytes // tensor.shape[0]))
                stream.write(data)
        except OSError as failure:
            raise _write_failure(self.folder, failure) from None

    def copy(self, path: Path) -> None:
        """Put a copy of a file into the folder."""
        try:
            shutil.copyfile(path, self.folder / path.name)
        except OSError as failure:
            raise RunError(
                f"cannot copy {path} to {self.folder}: {failure.strerror or failure}"
            ) from None

    def write_text(self, name: str, text: str) -> None:
        try:
            (self.folder / name).write_text(text, encoding="utf-8")
        except OSError as failure:
            raise _write_failure(self.folder / name, failure) from None

    def finish(self) -> None:
        """Make everything durable and give the folder its final name, in one step."""
        try:
            self._write_index()
            for path in self.folder.iterdir():
                _sync(path)
            (self.folder / LOCK_NAME).unlink()
            _sync(self.folder)
            self.folder.rename(self.out)
            self._release()
            _sync(self.out.parent)
        except OSError as failure:
            raise _write_failure(self.out, failure) from None

    def _claim(self) -> None:
        """Make the folder, or take over and empty what a killed run left.

        A lock that the system releases with the process tells a run at work from a dead one.
        """
        path = self.folder / LOCK_NAME
        try:
            self.folder.mkdir(parents=True)
            self._mark(path)
        except FileExistsError:
            if not path.is_file():
                raise OutputError(
                    f"{self.folder} is in the way, and is not ours; rename or remove it"
                ) from None
        lock = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise OutputError(
                f"another conversion is writing {self.folder}; wait for it or name another folder"
            ) from None
        self._lock = lock
        for path in self.folder.iterdir():
            if path.name != LOCK_NAME:
                path.unlink()

    def _mark(self, path: Path) -> None:
        try:
            path.touch()
        except OSError:
            self.folder.rmdir()  # without the mark, no later run would know it for ours
            raise

    def _create_shard(self, file: Path, names: list[str]) -> None:
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
        with file.open("xb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + offset)
        for name in names:
            start = header[name]["data_offsets"][0]  # type: ignore[index]
            self._places[name] = (file, 8 + len(text) + start)

    def _write_index(self) -> None:
        weight_map = {name: file for file, names in self._shards.items() for name in names}
        total = sum(tensor.nbytes for tensor in self.tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        self.write_text(INDEX_NAME, json.dumps(index, indent=4) + "\n")

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _discard(self) -> None:
        """Remove the folder, unless it is not ours or has its final name; then let go of it."""
        while self._lock is not None:
            try:
                shutil.rmtree(self.folder, ignore_errors=True)
                self._release()
            except KeyboardInterrupt:  # a second Ctrl-C must not leave half of it behind
                continue


def resolve_destination(out: Path) -> Path:
    """The folder that `out` names, through symbolic links. Raises OutputError for a loop."""
    try:
        return out.resolve()
    except (OSError, RuntimeError) as failure:
        raise OutputError(f"cannot write to {out}: {failure}") from None


def partial_folder(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def check_destination(out: Path, nbytes: int) -> None:
    """Raises OutputError if `out` exists, cannot be created, or has no room for `nbytes`.

    An empty folder will do, unless the user stands in it.
    """
    try:
        if out.exists() and not _is_spare(out):
            raise OutputError(f"{out} already exists; name another folder or remove it first")
        parent = partial_folder(out).parent
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"cannot write to {parent}; choose a folder of your own")
        free = shutil.disk_usage(parent).free
    except OSError as failure:
        raise OutputError(f"cannot write to {out}: {failure.strerror or failure}") from None
    if free < nbytes:
        raise OutputError(
            f"{out} needs {human_bytes(nbytes)} but only {human_bytes(free)} are free on that disk"
        )


def _is_spare(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir()) and not folder.samefile(Path.cwd())


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


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_failure(path: Path, failure: OSError) -> RunError:
    return RunError(f"cannot write {path}: {failure.strerror or failure}; nothing was kept")
