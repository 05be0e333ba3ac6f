"""The files of a source while it is converted, on this machine or still to be fetched."""

import threading
from pathlib import Path
from typing import Protocol

from mlx_llama4.hub.sums import check_sum


class Shards(Protocol):
    """The source's files; a conversion asks for them in the order of its jobs."""

    def expect(self, files: list[list[Path]]) -> None:
        """Announces the files that each remaining job will need."""
        ...

    def ensure(self, file: Path) -> None:
        """Returns when the file can be read. The reading thread calls it."""
        ...

    def done(self, files: list[Path]) -> None:
        """Says that a job that read these files is durably written. The writing thread calls it."""
        ...

    def stop(self) -> None:
        """Ends every `ensure` that is waiting, because the conversion ends early."""
        ...

    @property
    def verified(self) -> set[Path]:
        """The files whose content was found to be the hub's."""
        ...

    def stamp(self, file: Path) -> str:
        """Tells this file from another of the same name, whether or not it is here."""
        ...


class LocalShards:
    """A folder on this machine, whose files are there and stay. Each is compared with the hub's
    sum, if that is known, before it is first used.
    """

    def __init__(self) -> None:
        self.verified: set[Path] = set()
        self._seen: set[Path] = set()
        self._stopped = threading.Event()
        self._stamps: dict[Path, str] = {}

    def expect(self, files: list[list[Path]]) -> None:
        pass

    def ensure(self, file: Path) -> None:
        """Reads a file as a whole the first time. The slices that follow come from the system's
        cache then, if the file fits there. Raises RunError if its content is not the hub's.
        """
        if file not in self._seen:
            if check_sum(file, self._stopped.is_set):
                self.verified.add(file)
            self._seen.add(file)

    def done(self, files: list[Path]) -> None:
        pass

    def stop(self) -> None:
        self._stopped.set()

    def stamp(self, file: Path) -> str:
        if file not in self._stamps:
            status = file.stat()
            # cp -p, rsync -t and mv keep size and time of a file whose content is another.
            whole = f"{status.st_ino}.{status.st_ctime_ns}"
            self._stamps[file] = f"{file.name}:{status.st_size}:{status.st_mtime_ns}:{whole}"
        return self._stamps[file]
