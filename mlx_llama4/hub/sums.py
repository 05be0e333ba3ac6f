"""Compares files with the SHA-256 that the hub has of them.

huggingface_hub checks the length of a download and not its content: a file of the right length
may hold a hole of zeros (huggingface_hub issue 3643). The sums are here already: in the hub's cache
they are the names of the files that a snapshot links to; a download to a folder of its own keeps
them in `.cache/huggingface/download/NAME.metadata`. Files of other origin have none.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from mlx_llama4.errors import RunError

BLOCK_BYTES = 2**23
SHA256 = re.compile(r"[0-9a-f]{64}")  # others are Git's, of small files


class WrongSumError(RunError):
    """A file's content is not what the hub has under its name."""


def never() -> bool:
    return False


def hub_sum(file: Path) -> str | None:
    """The SHA-256 that the hub had of a file when it was downloaded; None if nothing tells."""
    if file.is_symlink():
        target = file.resolve()
        if target.parent.name == "blobs" and SHA256.fullmatch(target.name):
            return target.name
    try:
        lines = metadata_of(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return None
    etag = lines[1].strip() if len(lines) > 1 else ""  # after the commit
    return etag if SHA256.fullmatch(etag) else None


def metadata_of(file: Path) -> Path:
    """Where a download to a folder keeps what the hub said of a file."""
    return file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"


def check_sum(file: Path, stopped: Callable[[], bool] = never) -> bool:
    """Reads the whole file, and returns True; False, without reading, if no sum is known.

    stopped: is asked now and then whether to give up. Raises RunError if the content is not the
    hub's, if the file cannot be read, or if it was told to stop.
    """
    if (expected := hub_sum(file)) is None:
        return False
    found = _sum_of(file, stopped)
    if found != expected:
        raise WrongSumError(
            f"{file} is not what the hub has: its SHA-256 is {found[:12]}…, not {expected[:12]}…; "
            f"delete {file.resolve()} and download it again"
        )
    return True


def check_fresh(file: Path, stopped: Callable[[], bool] = never) -> bool:
    """As `check_sum`, for a file that was just downloaded: a wrong one is deleted, so that the next
    download fetches it anew.
    """
    try:
        return check_sum(file, stopped)
    except WrongSumError:
        metadata_of(file).unlink(missing_ok=True)
        file.resolve().unlink(missing_ok=True)
        raise WrongSumError(
            f"{file.name} came damaged: its SHA-256 is not the hub's; it is deleted, and the same "
            "command downloads it again"
        ) from None


def _sum_of(file: Path, stopped: Callable[[], bool]) -> str:
    digest, buffer = hashlib.sha256(), bytearray(BLOCK_BYTES)
    view = memoryview(buffer)
    try:
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(view):
                if stopped():
                    raise RunError(f"reading {file} was stopped")
                digest.update(view[:count])
    except OSError as failure:
        raise RunError(f"cannot read {file}: {failure.strerror or failure}") from None
    return digest.hexdigest()
