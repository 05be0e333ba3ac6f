"""Deletes what killed downloads left in the hub's cache.

huggingface_hub 2 gives each download's file a name of its own until it is whole, so a later one
neither goes on with what a kill left nor deletes it: gigabytes that nobody finds.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def clear_broken_off(snapshot: Path) -> int:
    """Deletes the parts of files that no process is fetching; returns how many bytes they took.

    snapshot: the folder of a commit in the hub's cache.
    """
    repository = snapshot.parent.parent
    freed = 0
    for file in (repository / "blobs").glob("*.incomplete"):
        lock = repository.parent / ".locks" / repository.name / f"{file.name.split('.')[0]}.lock"
        with contextlib.suppress(OSError), _claimed(lock) as is_ours:
            if is_ours:
                nbytes = file.stat().st_size
                file.unlink()
                freed += nbytes
    return freed


@contextlib.contextmanager
def _claimed(lock: Path) -> Iterator[bool]:
    """Whether nobody else holds the lock that a download takes; it is held until the end."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)
