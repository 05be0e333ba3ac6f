"""Writes a folder of safetensors shards in place, and gives it its final name at the end.

All sizes are known beforehand, so headers come first and every tensor has its place; parts may
arrive in any order. Nothing has the final name until everything is written and on the disk.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlx_llama4.checkpoint.safetensors import INDEX_NAME
from mlx_llama4.convert.journal import JOURNAL_NAME, Entry, Journal, has_progress
from mlx_llama4.convert.shards import (
    OutputTensor,
    assign_shards,
    create_shard,
    shard_header,
    tensor_places,
)
from mlx_llama4.errors import OutputError, RunError
from mlx_llama4.files import disk
from mlx_llama4.files.durable import MAX_CALL_BYTES, forget_cached, sync_path

MAX_SHARD_BYTES = 5 * 10**9
LOCK_NAME = "conversion.lock"
# Data becomes durable, and is journalled, each time this much has been written: waiting for the
# disk after every slice would leave it idle in between. Slow work, such as a search or a slow
# network, is committed by time too, or a kill would lose minutes of it.
COMMIT_BYTES = 256 * 2**20
COMMIT_SECONDS = 10.0
CHECK_BLOCK_BYTES = 2**24


class FolderWriter:
    """Writes `tensors` to `<out>.partial`, which `finish` renames to `out`.

    Use it as a context manager. Leaving it without `finish` keeps the folder if the journal lists
    anything as done, and removes it otherwise. Raises OutputError if that folder is not ours, if
    another run is using it, or if it holds another conversion.
    """

    def __init__(
        self,
        out: Path,
        tensors: Mapping[str, OutputTensor],
        *,
        shard_bytes: int = MAX_SHARD_BYTES,
        restart: bool = False,
        options: Mapping[str, Any] = MappingProxyType({}),
    ):
        self.out = out
        self.folder = partial_folder(out)
        self.tensors = tensors
        self.done: dict[int, Entry] = {}  # job → what an earlier run finished
        self._restart = restart
        self._shards = assign_shards(tensors, shard_bytes)
        self._headers = {file: shard_header(names, tensors) for file, names in self._shards.items()}
        self._places = tensor_places(self.folder, self._shards, self._headers, tensors)
        self._journal = Journal(self.folder, {"options": dict(options), "plan": self._digest()})
        self._lock: int | None = None  # file descriptor, while the folder is ours
        self._dirty: set[Path] = set()
        self._unjournalled: list[Entry] = []
        self._undurable_bytes = 0
        self._committed = time.monotonic()

    def __enter__(self) -> "FolderWriter":
        try:
            self._claim()
            self._prepare()
        except OSError as failure:
            self._leave()
            raise _write_failure(self.folder, failure) from None
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if self._lock is not None:
                self.commit()
        except RunError:
            pass  # the disk is full: the next run redoes what is not journalled
        finally:
            self._leave()

    def write(self, name: str, row: int, data: bytes | memoryview) -> None:
        """Writes `data` at row `row` of the first axis of tensor `name`."""
        file, offset = self._places[name]
        try:
            with file.open("r+b", buffering=0) as stream:
                stream.seek(offset + row * self.row_bytes(name))
                view = memoryview(data)
                while view:
                    view = view[stream.write(view[:MAX_CALL_BYTES]) :]
        except OSError as failure:
            raise _write_failure(self.folder, failure) from None
        self._dirty.add(file)
        self._undurable_bytes += len(data)

    def row_bytes(self, name: str) -> int:
        return self.tensors[name].nbytes // self.tensors[name].shape[0]

    def record(self, entry: Entry) -> list[Entry]:
        """Notes that a job is written. The journal gets it once its data is on the disk.

        Returns the entries that thereby became durable: none, or many at once.
        """
        self._unjournalled.append(entry)
        is_late = time.monotonic() - self._committed >= COMMIT_SECONDS
        return self.commit() if is_late or self._undurable_bytes >= COMMIT_BYTES else []

    def commit(self) -> list[Entry]:
        """Makes everything recorded durable. Returns the entries that now are."""
        entries = self._unjournalled
        try:
            for file in sorted(self._dirty):
                sync_path(file)
            if entries:
                self._journal.append(entries)
        except OSError as failure:
            # A second sync succeeds although the first one's data is lost, so never record these.
            self._unjournalled = []
            raise _write_failure(self.folder, failure) from None
        self._dirty.clear()
        self._unjournalled, self._undurable_bytes = [], 0
        self._committed = time.monotonic()
        return entries

    def checksum(self, name: str, row: int, rows: int) -> int | None:
        """CRC-32 of a tensor's rows as the file has them now; None if it cannot be read."""
        file, offset = self._places[name]
        crc, left = 0, rows * self.row_bytes(name)
        try:
            with file.open("rb") as stream:
                stream.seek(offset + row * self.row_bytes(name))
                while left and (block := stream.read(min(left, CHECK_BLOCK_BYTES))):
                    crc, left = zlib.crc32(block, crc), left - len(block)
        except OSError:
            return None
        return crc

    def forget_cached(self) -> None:
        """Makes `checksum` read from the disk rather than a cache."""
        for file in {file for file, _ in self._places.values()}:
            with file.open("rb") as stream:
                forget_cached(stream.fileno())

    def copy(self, path: Path) -> None:
        """Copies a file into the folder."""
        try:
            shutil.copyfile(path, self.folder / path.name)
        except OSError as failure:
            raise RunError(
                f"cannot copy {path} to {self.folder}: {failure.strerror or failure}"
            ) from None

    def write_text(self, name: str, text: str) -> None:
        try:
            # The card mentions the folder's name, which may have any bytes.
            (self.folder / name).write_text(text, encoding="utf-8", errors="replace")
        except OSError as failure:
            raise _write_failure(self.folder / name, failure) from None

    def finish(self) -> None:
        """Makes everything durable and gives the folder its final name, in one step."""
        try:
            self.commit()
            self._write_index()
            for path in self.folder.iterdir():
                sync_path(path)
            sync_path(self.folder)
            self.folder.rename(self.out)
            # Not before the rename: if that failed, or Ctrl-C came meanwhile, a folder without its
            # journal would be cleared away as undone.
            for name in (JOURNAL_NAME, LOCK_NAME):
                (self.out / name).unlink()
            self._release()
            sync_path(self.out)
            sync_path(self.out.parent)
        except OSError as failure:
            raise _write_failure(self.out, failure) from None

    def _claim(self) -> None:
        """Makes the folder, or takes over what a killed run left.

        The system releases the lock with the process, so it tells a live run from a dead one.
        """
        path = self.folder / LOCK_NAME
        try:
            self.folder.mkdir(parents=True)
            self._mark(path)
        except FileExistsError:
            if _is_empty_folder(self.folder):
                self._mark(path)  # a run was killed before it could
            elif not path.is_file() or path.is_symlink():
                raise OutputError(
                    f"{self.folder} is in the way, and is not ours; rename or remove it"
                ) from None
        lock = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as failure:
            os.close(lock)
            if not isinstance(failure, BlockingIOError):
                raise  # some network volumes know no locks
            raise OutputError(
                f"another conversion is writing {self.folder}; wait for it or name another folder"
            ) from None
        self._lock = lock

    def _mark(self, path: Path) -> None:
        try:
            path.touch()
        except OSError:
            self.folder.rmdir()  # without the mark, no later run would take it for ours
            raise

    def _prepare(self) -> None:
        """Brings the folder to the state that the journal describes, or empties it."""
        is_same, entries = self._journal.read()
        if has_progress(self.folder) and not is_same and not self._restart:
            self._release()
            other, how = "with other options", "repeat those"
            if not self._journal.is_of_this_version():
                other, how = "by another version of mlx-llama4", "use that one"
            raise OutputError(
                f"{self.folder} holds an unfinished conversion {other}; {how} to finish it, "
                "or add --restart to throw it away"
            )
        keeps = is_same and not self._restart
        kept = {LOCK_NAME, JOURNAL_NAME, *self._shards} if keeps else {LOCK_NAME}
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink()
        for file_name, header in self._headers.items():
            create_shard(self.folder / file_name, header, self._shards[file_name], self.tensors)
        if keeps:
            self.done = entries
            self._journal.mend(entries.values())
        else:
            self._journal.create()

    def _digest(self) -> str:
        """A digest of everything that decides which bytes lie where."""
        digest = hashlib.sha256()
        for file_name, header in self._headers.items():
            digest.update(file_name.encode() + header)
        return digest.hexdigest()

    def _write_index(self) -> None:
        weight_map = {name: file for file, names in self._shards.items() for name in names}
        total = sum(tensor.nbytes for tensor in self.tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        self.write_text(INDEX_NAME, json.dumps(index, indent=4) + "\n")

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _leave(self) -> None:
        """Removes the folder if nothing in it is done; releases it."""
        while self._lock is not None:
            try:
                if not has_progress(self.folder):
                    shutil.rmtree(self.folder, ignore_errors=True)
                self._release()
            except KeyboardInterrupt:  # a second Ctrl-C must not leave it half removed
                continue


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


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

    An existing empty folder is fine, unless it is the current one.
    """
    try:
        if _is_there(out) and not _is_spare(out):
            if _is_finished(out):
                raise OutputError(f"{out} was finished by an earlier run, and can be used")
            raise OutputError(f"{out} already exists; name another folder or remove it first")
        disk.check_writable(disk.nearest_folder(partial_folder(out).parent))
        free = free_bytes(out)
    except OSError as failure:
        raise OutputError(f"cannot write to {out}: {failure.strerror or failure}") from None
    disk.check_room(out, nbytes, free)


def free_bytes(out: Path) -> int:
    """Free bytes of the disk for `out`, with those that an unfinished conversion to it takes."""
    partial = partial_folder(out.absolute())
    return disk.free_bytes(partial.parent) + _taken_bytes(partial)


def _taken_bytes(folder: Path) -> int:
    """Bytes that an unfinished conversion takes; its files have their final sizes, with holes."""
    if not _is_there(folder) or not folder.is_dir():
        return 0
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir() if path.is_file())


def _is_there(path: Path) -> bool:
    """Raises OSError for a name too long, to which Path.exists says False since Python 3.14."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_finished(out: Path) -> bool:
    """Was a run killed after it had given the folder its name? Then tidies up after it."""
    if not ((out / JOURNAL_NAME).is_file() and (out / INDEX_NAME).is_file()):
        return False
    for name in (JOURNAL_NAME, LOCK_NAME):
        (out / name).unlink(missing_ok=True)
    return True


def _is_spare(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir()) and not folder.samefile(Path.cwd())


def _write_failure(path: Path, failure: OSError) -> RunError:
    return RunError(f"cannot write {path}: {failure.strerror or failure}")
