"""Is there room on a disk, and may we write there?"""

import os
import shutil
from pathlib import Path

from mlx_llama4.errors import OutputError
from mlx_llama4.units import human_bytes


def nearest_folder(path: Path) -> Path:
    """What is there of a path: itself, or what it would be made in."""
    while not path.exists():
        path = path.parent
    return path


def check_writable(folder: Path) -> None:
    """Raises OutputError if nothing can be made in it."""
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {folder}; choose a folder of your own")


def free_bytes(path: Path) -> int:
    """Of the disk that `path` is on, or would be."""
    return shutil.disk_usage(nearest_folder(path)).free


def shortage(what: object, nbytes: int, free: int) -> str | None:
    """What to tell somebody who has not room for so many bytes; None if there is room."""
    if nbytes <= free:
        return None
    return f"{what} needs {human_bytes(nbytes)} but only {human_bytes(free)} are free"


def check_room(what: object, nbytes: int, free: int) -> None:
    """Raises OutputError if there is no room for `nbytes`."""
    if (problem := shortage(what, nbytes, free)) is not None:
        raise OutputError(f"{problem} on that disk")
