"""How fast a program that does nothing else reads a model's files from the disk: the limit.

Before each read, the files are dropped from the page cache. Reads can also bypass it where the
system allows: with O_DIRECT on Linux, whose reads must be aligned, and with F_NOCACHE on macOS.
"""

import fcntl
import mmap
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_llama4.checkpoint.safetensors import open_checkpoint
from mlx_llama4.files.durable import forget_cached

BLOCK_BYTES = 16 * 2**20
ALIGNMENT = 4096


@dataclass(frozen=True)
class ByteRange:
    file: Path
    start: int
    nbytes: int


@dataclass(frozen=True)
class Speed:
    """What some reads took."""

    nbytes: int
    seconds: float
    cpu_seconds: float  # of all threads, the system's work included

    @property
    def bytes_per_second(self) -> float:
        return self.nbytes / self.seconds


# (layer, expert) → where its tensors are
ExpertRanges = dict[tuple[int, int], list[ByteRange]]


def expert_ranges(folder: Path) -> ExpertRanges:
    """The experts of an MLX folder. Raises CheckpointError for damaged shards."""
    experts: ExpertRanges = {}
    for name, tensor in open_checkpoint(folder).tensors.items():
        match = re.search(r"\.layers\.(\d+)\.feed_forward\.experts\.", name)
        if match is None:
            continue
        nbytes = tensor.nbytes // tensor.shape[0]
        for expert in range(tensor.shape[0]):
            one = ByteRange(tensor.file, tensor.offset + expert * nbytes, nbytes)
            experts.setdefault((int(match[1]), expert), []).append(one)
    return experts


def some_of(experts: ExpertRanges, nbytes: int, seed: int) -> ExpertRanges:
    """Experts in a random order, as many as make up `nbytes` bytes, or all."""
    keys = list(experts)
    chosen, left = {}, nbytes
    for index in np.random.default_rng(seed).permutation(len(keys)):
        if left <= 0:
            break
        chosen[keys[index]] = experts[keys[index]]
        left -= sum(one.nbytes for one in experts[keys[index]])
    return chosen


def read_sequentially(files: Sequence[Path], nbytes: int, *, past_cache: bool) -> Speed:
    """Read the first `nbytes` bytes of the files, one block after the other."""
    forget(files)
    block = _aligned_memory(BLOCK_BYTES)
    left = nbytes

    def read() -> int:
        nonlocal left
        for file in files:
            with _opened(file, past_cache) as descriptor:
                offset = 0
                count = len(block)
                while left > 0 and count == len(block):  # less: the file ends
                    count = os.preadv(descriptor, [block], offset)
                    offset, left = offset + count, left - count
        return nbytes - left

    return timed(read)


def read_experts(
    experts: Sequence[list[ByteRange]], *, readers: int, piece_bytes: int, past_cache: bool
) -> Speed:
    """Read one expert after the other, in pieces of its ranges, with `readers` threads.

    piece_bytes: a multiple of ALIGNMENT.
    """
    files = sorted({one.file for expert in experts for one in expert})
    forget(files)
    descriptors = {file: _open(file, past_cache) for file in files}
    memory = _aligned_memory(max(sum(map(_aligned_bytes, expert)) for expert in experts))

    def read_piece(descriptor: int, start: int, into: memoryview) -> None:
        count = ALIGNMENT
        while into and count % ALIGNMENT == 0 and count:  # else the file ends
            count = os.preadv(descriptor, [into], start)
            start, into = start + count, into[count:]

    def read() -> int:
        total = 0
        for expert in experts:
            pieces, place = [], 0
            for one in expert:
                start = one.start // ALIGNMENT * ALIGNMENT
                stop = start + _aligned_bytes(one)
                for offset in range(start, stop, piece_bytes):
                    length = min(piece_bytes, stop - offset)
                    pieces.append((descriptors[one.file], offset, memory[place : place + length]))
                    place += length
                total += one.nbytes
            list(threads.map(lambda piece: read_piece(*piece), pieces))
        return total

    try:
        with ThreadPoolExecutor(readers) as threads:
            return timed(read)
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


def can_pass_cache(file: Path) -> bool:
    """Whether the file system lets reads bypass the page cache."""
    try:
        with _opened(file, past_cache=True) as descriptor:
            os.preadv(descriptor, [_aligned_memory(ALIGNMENT)], 0)
    except OSError:
        return False
    return True


def forget(files: Sequence[Path]) -> None:
    """Drop these files from the page cache, so that they are read from the disk next."""
    os.sync()  # what is not written yet cannot be dropped
    for file in files:
        with file.open("rb") as stream:
            forget_cached(stream.fileno())


def timed(read: Callable[[], int]) -> Speed:
    """Time `read`, which returns how many bytes it read."""
    start, cpu_start = time.perf_counter(), time.process_time()
    nbytes = read()
    return Speed(nbytes, time.perf_counter() - start, time.process_time() - cpu_start)


def _aligned_bytes(one: ByteRange) -> int:
    """Bytes of the whole blocks that a range touches."""
    start = one.start // ALIGNMENT * ALIGNMENT
    return -(-(one.start + one.nbytes - start) // ALIGNMENT) * ALIGNMENT


def _aligned_memory(nbytes: int) -> memoryview:
    """Memory that is touched once, so that reads need not wait for it."""
    memory = memoryview(mmap.mmap(-1, nbytes))
    np.frombuffer(memory, np.uint8)[:] = 0
    return memory


@contextmanager
def _opened(file: Path, past_cache: bool) -> Iterator[int]:
    descriptor = _open(file, past_cache)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open(file: Path, past_cache: bool) -> int:
    if sys.platform == "darwin":
        descriptor = os.open(file, os.O_RDONLY)
        if past_cache:
            fcntl.fcntl(descriptor, fcntl.F_NOCACHE, 1)
        return descriptor
    return os.open(file, os.O_RDONLY | (os.O_DIRECT if past_cache else 0))
