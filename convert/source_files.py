"""Where the files of a source are while it is converted: here, or still to be fetched."""

from pathlib import Path
from typing import Protocol


class Shards(Protocol):
    """The source's files, asked for in the order of the jobs."""

    def expect(self, files: list[list[Path]]) -> None:
        """The files that each job still to do will need."""
        ...

    def ensure(self, file: Path) -> None:
        """Have the file there, to be read. Called by the reading thread."""
        ...

    def done(self, files: list[Path]) -> None:
        """What a job made of these files is on the disk for good. Called by the writing thread."""
        ...

    def stop(self) -> None:
        """The conversion ends early: let no `ensure` wait any longer."""
        ...

    def stamp(self, file: Path) -> str:
        """What tells this file from another of the same name, whether it is there or not."""
        ...


class LocalShards:
    """A folder on this machine: everything is there, and stays."""

    def __init__(self) -> None:
        self._stamps: dict[Path, str] = {}

    def expect(self, files: list[list[Path]]) -> None:
        pass

    def ensure(self, file: Path) -> None:
        pass

    def done(self, files: list[Path]) -> None:
        pass

    def stop(self) -> None:
        pass

    def stamp(self, file: Path) -> str:
        if file not in self._stamps:
            status = file.stat()
            self._stamps[file] = f"{file.name}:{status.st_size}:{status.st_mtime_ns}"
        return self._stamps[file]
