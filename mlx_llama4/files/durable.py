"""Writes that survive a power cut, and reads that come from the disk itself."""

import contextlib
import ctypes
import fcntl
import mmap
import os
import sys
from pathlib import Path

import numpy as np

MAX_CALL_BYTES = 2**30  # macOS refuses to read or write more than 2 GB in one call
MS_INVALIDATE = 2  # of msync, on macOS as on Linux


def sync_file(descriptor: int) -> None:
    """Waits until everything written is on the disk, not only in its cache."""
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)  # macOS, where fsync stops at the drive
    if full_sync is not None:
        try:
            fcntl.fcntl(descriptor, full_sync)
            return
        except OSError:  # network volumes do not have it
            pass
    os.fsync(descriptor)


def sync_path(path: Path) -> None:
    """The same for a file by its path, or for a folder's list of files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def forget_cached(descriptor: int) -> None:
    """Makes the next reads come from the disk, as far as the system allows."""
    if sys.platform != "darwin":
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    else:
        with contextlib.suppress(OSError):  # not every volume can be mapped
            _invalidate(descriptor)


def _invalidate(descriptor: int) -> None:
    """Drops a file's cached pages on macOS. F_NOCACHE is not enough: it concerns one descriptor,
    and reads still use pages that are in memory.
    """
    if not os.fstat(descriptor).st_size:
        return
    with mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as view:
        address = np.frombuffer(view, np.uint8).ctypes.data
        system = ctypes.CDLL(None, use_errno=True)
        if system.msync(ctypes.c_void_p(address), ctypes.c_size_t(len(view)), MS_INVALIDATE):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
