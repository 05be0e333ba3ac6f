"""Bytes that survive a power cut, and bytes read back from the disk itself."""

import fcntl
import os
from pathlib import Path


def sync_file(descriptor: int) -> None:
    """Wait until what was written is on the disk, not only in its cache."""
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)  # macOS, where fsync stops at the drive
    if full_sync is not None:
        try:
            fcntl.fcntl(descriptor, full_sync)
            return
        except OSError:  # network volumes do not know it
            pass
    os.fsync(descriptor)


def sync_path(path: Path) -> None:
    """The same for a file by name, or for a folder's list of files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def forget_cached(descriptor: int) -> None:
    """Have the next reads come from the disk, as far as the system lets us."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    elif (no_cache := getattr(fcntl, "F_NOCACHE", None)) is not None:
        fcntl.fcntl(descriptor, no_cache, 1)
