"""Checks that a disk has room and that we may write to a folder."""

import os
import shutil
from pathlib import Path

from mlx_llama4.errors import OutputError
from mlx_llama4.units import human_bytes


def nearest_folder(path: Path) -> Path:
    """The path itself if it exists, else the nearest parent that does."""
    while not path.exists():
        path = path.parent
    return path


def check_writable(folder: Path) -> None:
    """Raises OutputError if nothing can be created in the folder."""
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {folder}; choose a folder of your own")


def free_bytes(path: Path) -> int:
    """Free bytes of the disk that `path` is on, or would be on."""
    return shutil.disk_usage(nearest_folder(path)).free


def shortage(what: object, nbytes: int, free: int) -> str | None:
    """What to tell the user if `free` bytes are too few; None if they are enough."""
    if nbytes <= free:
        return None
    return f"{what} needs {human_bytes(nbytes)} but only {human_bytes(free)} are free"


def check_room(what: object, nbytes: int, free: int) -> None:
    """Raises OutputError if `free` bytes are too few for `nbytes`."""
    if (problem := shortage(what, nbytes, free)) is not None:
        raise OutputError(f"{problem} on that disk")
