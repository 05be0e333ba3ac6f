"""Measure how fast the disk delivers weights.

Reads a temporary file, or a model's own files, bypassing the page cache if the system allows it.
"""

import fcntl
import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_llama4.files.durable import forget_cached, sync_path

FILE_BYTES = 256 * 10**6
BLOCK_BYTES = 4 * 2**20  # as for streamed experts; a multiple of what O_DIRECT needs
READERS = 8


@dataclass(frozen=True)
class DiskSpeed:
    """How fast the disk was read."""

    file_system: str | None
    nbytes: int
    # Whether all reads bypassed the page cache. If not, the system was asked to empty it before.
    past_cache: bool
    one_reader: float  # bytes a second
    many_readers: float  # bytes a second, READERS at once


def measure_folder(folder: Path, nbytes: int = FILE_BYTES) -> DiskSpeed:
    """Measure with a temporary file in the folder. Raises OSError."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".mlx-llama4-doctor-") as file:
        # Number the blocks, since some file systems store identical ones only once.
        block = np.random.default_rng().bytes(BLOCK_BYTES)
        for start in range(0, nbytes, BLOCK_BYTES):
            file.write(start.to_bytes(8, "little") + block[8:])
        file.flush()
        return measure_files([Path(file.name)], nbytes)


def measure_files(files: Sequence[Path], nbytes: int = FILE_BYTES) -> DiskSpeed:
    """Measure with the first `nbytes` bytes of the files, or all of them. Raises OSError."""
    blocks = _blocks(files, nbytes)
    if not blocks:
        raise OSError(0, "there is nothing to read")
    past_cache = _passes_cache(files[0])
    one = _speed(files, blocks, 1, past_cache)
    many = _speed(files, blocks, READERS, past_cache)
    total = sum(length for _, _, length in blocks)
    file_system = _file_system(files[0])
    return DiskSpeed(file_system, total, past_cache, total / one, total / many)


Block = tuple[Path, int, int]  # file, offset, bytes


def _blocks(files: Sequence[Path], nbytes: int) -> list[Block]:
    """Cut files into blocks. A file's last block may be shorter, but O_DIRECT reads a whole one."""
    blocks: list[Block] = []
    left = nbytes
    for file in files:
        size = file.stat().st_size
        for start in range(0, size, BLOCK_BYTES):
            if left <= 0:
                return blocks
            length = min(BLOCK_BYTES, size - start)
            blocks.append((file, start, length))
            left -= length
    return blocks


def _speed(files: Sequence[Path], blocks: list[Block], readers: int, past_cache: bool) -> float:
    """Read all blocks. Returns the time taken, in seconds."""
    for file in files:
        sync_path(file)  # the cache can only drop what has been written
        with file.open("rb") as stream:
            forget_cached(stream.fileno())
    descriptors = {file: _open(file, past_cache) for file in {file for file, _, _ in blocks}}
    memories = [memoryview(mmap.mmap(-1, BLOCK_BYTES)) for _ in range(readers)]

    def read(reader: int) -> None:
        for file, start, _ in blocks[reader::readers]:
            os.preadv(descriptors[file], [memories[reader]], start)

    try:
        with ThreadPoolExecutor(readers) as threads:
            return _seconds(lambda: list(threads.map(read, range(readers))))
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _passes_cache(file: Path) -> bool:
    """Whether the file can be read past the page cache, which some file systems refuse."""
    try:
        descriptor = _open(file, True)
    except OSError:
        return False
    try:
        os.preadv(descriptor, [memoryview(mmap.mmap(-1, BLOCK_BYTES))], 0)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _open(file: Path, past_cache: bool) -> int:
    direct = getattr(os, "O_DIRECT", 0) if past_cache else 0
    descriptor = os.open(file, os.O_RDONLY | direct)
    if past_cache and hasattr(fcntl, "F_NOCACHE"):  # macOS
        fcntl.fcntl(descriptor, fcntl.F_NOCACHE, 1)
    return descriptor


def _file_system(file: Path) -> str | None:
    """The kind of a file's file system, such as apfs, ext4 or nfs; None if unknown."""
    place, best = file.resolve(), (-1, "")
    for mount, kind in _mounts():
        if place.is_relative_to(mount) and len(mount) > best[0]:
            best = (len(mount), kind)
    return best[1] or None


def _mounts() -> list[tuple[str, str]]:
    """The mount points and kinds of all file systems; empty if they cannot be listed."""
    try:
        if sys.platform != "darwin":
            lines = Path("/proc/self/mounts").read_text().splitlines()
            return [(line.split(" ")[1], line.split(" ")[2]) for line in lines]
        found = subprocess.run(["mount"], capture_output=True, text=True, timeout=10, check=False)
        # /dev/disk3s1 on /System/Volumes/Data (apfs, local, journaled, nobrowse)
        parts = [line.partition(" on ")[2].rpartition(" (") for line in found.stdout.splitlines()]
        return [(mount, options.split(",")[0]) for mount, _, options in parts]
    except (OSError, IndexError, subprocess.SubprocessError):
        return []
