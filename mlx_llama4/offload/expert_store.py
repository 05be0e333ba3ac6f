"""Finds each expert in the shards of a model folder and reads it into memory that it is given.

An expert's rows of a stacked tensor are one contiguous range of bytes, so the folder needs no
preparation. Many positioned reads go at once, straight into the memory of the arrays that compute.
Needs no MLX.
"""

import contextlib
import fcntl
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mlx_llama4.checkpoint.matching import stored_quantization
from mlx_llama4.checkpoint.safetensors import Checkpoint, StoredTensor
from mlx_llama4.config import Config
from mlx_llama4.errors import CheckpointError, RunError
from mlx_llama4.files.dtypes import FLOAT_DTYPES, ITEM_BYTES
from mlx_llama4.offload.budget import LayerExperts
from mlx_llama4.offload.float_types import as_type, bits_of
from mlx_llama4.quantization import Quantization

# An SSD is fastest with many requests in its queue.
READERS = 8
PIECE_BYTES = 4 * 2**20
# Reads that bypass Linux's page cache begin and end at multiples of this, in file and memory.
ALIGNMENT = 4096
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class ExpertTensor:
    """One of the stacked tensors of a layer's experts, [experts, out, columns]."""

    projection: str
    name: str  # "weight", "scales" or "biases"
    stored: StoredTensor
    dtype: str  # of the values in memory, as safetensors spells it
    quantization: Quantization | None  # of the projection; None: not packed

    @property
    def rows(self) -> int:
        """Rows of one expert."""
        return self.stored.shape[1]

    @property
    def columns(self) -> int:
        return self.stored.shape[2]

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert in memory."""
        return self.rows * self.columns * ITEM_BYTES[self.dtype]


def expert_tensors(
    checkpoint: Checkpoint, config: Config, float_dtype: str
) -> dict[int, tuple[ExpertTensor, ...]]:
    """MoE layer → the tensors of its experts. The folder must match its config.

    float_dtype: "F32", "BF16" or "F16", for all floats in memory.
    """
    return {
        layer: tuple(
            ExpertTensor(
                projection,
                name,
                stored,
                float_dtype if stored.dtype in FLOAT_DTYPES else stored.dtype,
                quantization,
            )
            for projection in PROJECTIONS
            for name, stored, quantization in _stored(checkpoint, config, layer, projection)
        )
        for layer, kind in enumerate(config.text.layers)
        if kind.feed_forward == "moe"
    }


def is_routed_expert(name: str) -> bool:
    """Is a tensor of this name read expert by expert?"""
    return ".feed_forward.experts." in name


def _stored(
    checkpoint: Checkpoint, config: Config, layer: int, projection: str
) -> list[tuple[str, StoredTensor, Quantization | None]]:
    module = f"language_model.model.layers.{layer}.feed_forward.experts.{projection}"
    is_packed = f"{module}.scales" in checkpoint.tensors
    quantization = stored_quantization(checkpoint, config, module) if is_packed else None
    return [
        (name, checkpoint.tensors[f"{module}.{name}"], quantization)
        for name in ("weight", "scales", "biases")
        if f"{module}.{name}" in checkpoint.tensors
    ]


def layer_experts(tensors: Sequence[ExpertTensor]) -> LayerExperts:
    """A layer's experts, as the budget sees them."""
    return LayerExperts(
        count=tensors[0].stored.shape[0],
        expert_bytes=sum(tensor.expert_bytes for tensor in tensors),
        packing=tuple(
            (one.projection, one.name, one.rows, one.columns, one.dtype, one.quantization)
            for one in tensors
        ),
    )


class Reading:
    """The reads of one expert. Made before the first read begins, so that its owner can stop them
    even if an interruption comes between two of them.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self._pieces: list[Future[None]] = []
        self._writers = 0
        self._is_abandoned = False
        self._changed = threading.Condition()

    def begin(self, readers: ThreadPoolExecutor, read: Callable[[], None], nbytes: int) -> None:
        """Begins one more read, on a thread of `readers`."""
        self.nbytes += nbytes
        self._pieces.append(readers.submit(self._run, read))

    @property
    def is_done(self) -> bool:
        return all(piece.done() for piece in self._pieces)

    def finish(self) -> None:
        """Waits for all reads. Raises RunError if one failed."""
        for piece in self._pieces:
            piece.result()

    def abandon(self) -> None:
        """Cancels reads that have not begun; returns when none writes any more."""
        with self._changed:
            self._is_abandoned = True
            self._changed.wait_for(lambda: self._writers == 0)

    def _run(self, read: Callable[[], None]) -> None:
        with self._changed:
            if self._is_abandoned:
                return
            self._writers += 1
        try:
            read()
        finally:
            with self._changed:
                self._writers -= 1
                self._changed.notify_all()


class ExpertStore:
    """The shards of a folder, all held open, so that experts can be read even after a file was
    moved or deleted. page_cache False: ask the system not to cache what is read.
    """

    def __init__(self, layers: dict[int, tuple[ExpertTensor, ...]], page_cache: bool = True):
        self.layers = layers
        self._page_cache = page_cache
        self._files: dict[Path, int] = {}
        self._direct: set[Path] = set()  # files whose reads bypass the page cache
        weakref.finalize(self, _close, self._files)
        for file in sorted({tensor.stored.file for one in layers.values() for tensor in one}):
            self._open(file)
        self._readers = ThreadPoolExecutor(READERS, "expert reader")
        self._buffers = threading.local()

    def read(self, layer: int, expert: int, places: Sequence[np.ndarray], reading: Reading) -> None:
        """Begins to read an expert.

        places: for each of the layer's tensors an array [rows, columns] of integers, which takes
            the bits of the values. Nothing else may use it until `reading` is finished.
        reading: a new one, with which to wait.
        """
        for tensor, place in zip(self.layers[layer], places, strict=True):
            row_bytes = tensor.columns * ITEM_BYTES[tensor.stored.dtype]
            step = max(PIECE_BYTES // row_bytes, 1)
            start = tensor.stored.offset + expert * tensor.rows * row_bytes
            for row in range(0, tensor.rows, step):
                rows, offset = place[row : row + step], start + row * row_bytes
                read = partial(self._read_rows, tensor, rows, offset)
                reading.begin(self._readers, read, len(rows) * row_bytes)

    def _open(self, file: Path) -> None:
        try:
            if not self._page_cache and hasattr(os, "O_DIRECT"):
                with contextlib.suppress(OSError):  # not every file system has direct reads
                    self._files[file] = os.open(file, os.O_RDONLY | os.O_DIRECT)
                    self._direct.add(file)
                    return
            descriptor = self._files[file] = os.open(file, os.O_RDONLY)
        except OSError as failure:
            raise CheckpointError(f"cannot read {file}: {failure.strerror}") from None
        if sys.platform == "darwin" and not self._page_cache:
            fcntl.fcntl(descriptor, fcntl.F_NOCACHE, 1)

    def _read_rows(self, tensor: ExpertTensor, rows: np.ndarray, offset: int) -> None:
        stored = tensor.stored
        is_direct = stored.file in self._direct
        if tensor.dtype == stored.dtype and rows.flags.c_contiguous and not is_direct:
            self._read_bytes(stored.file, rows.data.cast("B"), offset)
            return
        items = bits_of(stored.dtype)
        start = offset % ALIGNMENT if is_direct else 0
        stop = start + rows.size * items.itemsize
        buffer = self._buffer(-(-stop // ALIGNMENT) * ALIGNMENT)
        whole = len(buffer) if is_direct else stop
        self._read_bytes(stored.file, buffer[:whole], offset - start, least=stop)
        bits = np.frombuffer(buffer[start:stop], items).reshape(rows.shape)
        rows[:] = as_type(bits, stored.dtype, tensor.dtype)

    def _buffer(self, nbytes: int) -> memoryview:
        """This thread's own buffer, page-aligned; a call overwrites what it held."""
        held = getattr(self._buffers, "bytes", None)
        if held is None or len(held) < nbytes:
            held = self._buffers.bytes = memoryview(mmap.mmap(-1, nbytes))
        return held[:nbytes]

    def _read_bytes(
        self, file: Path, into: memoryview, offset: int, least: int | None = None
    ) -> None:
        """Fills `into`, or at least its first `least` bytes if the file ends before it is full."""
        start, length, descriptor = offset, len(into), self._files[file]
        least = length if least is None else least
        try:
            while offset - start < least:
                count = os.preadv(descriptor, [into], offset)
                if count == 0:
                    raise RunError(f"{file} became shorter while it was in use; download it again")
                into, offset = into[count:], offset + count
            forgets = not self._page_cache and file not in self._direct
            if sys.platform != "darwin" and forgets:
                os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
        except OSError as failure:
            raise RunError(f"cannot read {file}: {failure.strerror or failure}") from None


def _close(files: dict[Path, int]) -> None:
    for descriptor in files.values():
        os.close(descriptor)
