"""The shards of a repository, as a conversion needs them: fetched in time, dropped after use."""

from collections import Counter
from pathlib import Path

from mlx_llama4.convert.remote import RemoteCheckpoint


class RemoteShards:
    """See `Shards`. keep: leave the shards where they are put."""

    def __init__(self, remote: RemoteCheckpoint, keep: bool = False):
        self.remote = remote
        self.keep = keep
        self._uses: Counter[Path] = Counter()  # by jobs that are left
        self._order: list[Path] = []

    @property
    def room_bytes(self) -> int:
        """Disk that shards take at most at any time."""
        return sum(self.remote.sizes.values()) if self.keep else self.remote.room_bytes

    def expect(self, files: list[list[Path]]) -> None:
        self._uses = Counter(file for needed in files for file in needed)
        self._order = list(self._uses)

    def ensure(self, file: Path) -> None:
        self.remote.ensure(file, self._following(file))

    def done(self, files: list[Path]) -> None:
        for file in files:
            self._uses[file] -= 1
            if not self._uses[file] and not self.keep:
                self.remote.release(file)

    def stamp(self, file: Path) -> str:
        """The commit tells all; a file fetched twice is the same though its times are not."""
        return f"{self.remote.repository}@{self.remote.checkpoint.folder.name}:{file.name}"

    def _following(self, file: Path) -> Path | None:
        """The next that is needed for the first time; none that is done with already."""
        later = self._order[self._order.index(file) + 1 :]
        return next((one for one in later if self._uses[one]), None)
