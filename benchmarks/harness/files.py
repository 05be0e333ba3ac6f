"""Files that a run makes: a temporary folder, and outputs that are whole or absent."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is deleted on leaving. TMPDIR says on which disk it lies."""
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-benchmark-") as name:
        yield Path(name)


def write_whole(path: Path, data: bytes) -> None:
    """Write all of `data` to `path`, or leave nothing there."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
