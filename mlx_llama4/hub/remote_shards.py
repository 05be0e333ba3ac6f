"""The shards of a repository, as a conversion needs them: fetched in time, dropped after use."""

from collections import Counter
from pathlib import Path

from mlx_llama4.hub.remote import RemoteCheckpoint


class RemoteShards:
    """See `Shards`. keep: leave the shards where they are put."""

    def __init__(self, remote: RemoteCheckpoint, keep: bool = False):
        self.remote = remote
        self.keep = keep
        self._uses: Counter[Path] = Counter()  # by jobs that are left
        self._order: list[Path] = []

    def room_bytes(self, files: list[list[Path]]) -> int:
        """Disk that shards take at most at any time, for jobs that need these files, beyond what
        they take now.
        """
        return max(0, self._most_bytes(files) - self.remote.taken_bytes)

    def _most_bytes(self, files: list[list[Path]]) -> int:
        """There are those in use, from their first job to their last, the next one on its way, and
        one whose last slices are becoming durable.
        """
        sizes = self.remote.sizes
        if self.keep:
            return sum(sizes.values())
        last = {file: index for index, needed in enumerate(files) for file in needed}
        order = list(dict.fromkeys(file for needed in files for file in needed))
        most, came = 0, 0
        for index, needed in enumerate(files):
            came = max([came, *(order.index(file) + 1 for file in needed)])
            used = [file for file in order[:came] if last[file] >= index]
            dropped = [file for file in order[:came] if last[file] < index]
            waiting = max(dropped, key=lambda file: last[file], default=None)
            there = [*used, *order[came : came + 1], *([waiting] if waiting else [])]
            most = max(most, sum(sizes.get(file, 0) for file in there))
        return most

    def expect(self, files: list[list[Path]]) -> None:
        self._uses = Counter(file for needed in files for file in needed)
        self._order = list(self._uses)
        self.remote.clear(self.remote.sizes if self.keep else self._uses)

    def ensure(self, file: Path) -> None:
        self.remote.ensure(file, self._following(file))

    def done(self, files: list[Path]) -> None:
        for file in files:
            self._uses[file] -= 1
            if not self._uses[file] and not self.keep:
                self.remote.release(file)

    def stop(self) -> None:
        self.remote.stop()

    def stamp(self, file: Path) -> str:
        """The commit tells all; a file fetched twice is the same though its times are not."""
        return f"{self.remote.repository}@{self.remote.checkpoint.folder.name}:{file.name}"

    def _following(self, file: Path) -> Path | None:
        """The next that is needed for the first time; none that is done with already."""
        later = self._order[self._order.index(file) + 1 :]
        return next((one for one in later if self._uses[one]), None)
