"""The page cache before a run: the same for all engines, and named in the report."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from benchmarks.harness.machine import this_machine
from mlx_llama4.errors import InputError
from mlx_llama4.files.durable import forget_cached

BLOCK_BYTES = 16 * 2**20

PageCache = Literal["warm", "cold", "unknown"]
MEANING: dict[PageCache, str] = {
    "warm": "warm: the source is read once before every run",
    "cold": "cold: the source is dropped from it before every run",
    "unknown": "unknown: the source is too large to stay in it",
}


def page_cache_of(source_bytes: int, cold: bool) -> PageCache:
    """The state to bring it to: a source larger than half the memory would not stay in it.

    Raises InputError if `cold` is wanted and the system cannot do it.
    """
    can_drop = hasattr(os, "posix_fadvise")
    if cold and not can_drop:
        raise InputError("--cold needs Linux; on macOS run `sudo purge` before a single round")
    if not cold and source_bytes <= this_machine().memory_bytes // 2:
        return "warm"
    return "cold" if can_drop else "unknown"


def prepare_page_cache(files: Sequence[Path], state: PageCache) -> None:
    """Bring the page cache to that state, and write what earlier runs left to be written."""
    os.sync()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            if state == "cold":
                forget_cached(stream.fileno())
            elif state == "warm":
                while stream.read(BLOCK_BYTES):
                    pass
