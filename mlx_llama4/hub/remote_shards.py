"""The shards of a repository while it is converted: fetched in time, deleted after use."""

from collections import Counter
from pathlib import Path

from mlx_llama4.hub.remote import RemoteCheckpoint


class RemoteShards:
    """See `Shards` in convert/source_files.py."""

    def __init__(self, remote: RemoteCheckpoint, keep: bool = False):
        self.remote = remote
        self.keep = keep  # do not delete shards after use
        self.verified = remote.verified  # files whose content was found to be the hub's
        self._uses: Counter[Path] = Counter()  # shard → jobs left that need it
        self._order: list[Path] = []

    def room_bytes(self, files: list[list[Path]]) -> int:
        """Bytes that shards take on the disk at most, beyond what they take now, for jobs that need
        these files.
        """
        return max(0, self._most_bytes(files) - self.remote.taken_bytes)

    def _most_bytes(self, files: list[list[Path]]) -> int:
        """Counts shards in use, from their first job to their last; the next one, which is being
        fetched; and one whose last slices are not durable yet.
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
        """The commit and the name: a file fetched twice is the same, though its times differ."""
        return f"{self.remote.repository}@{self.remote.checkpoint.folder.name}:{file.name}"

    def _following(self, file: Path) -> Path | None:
        """The next shard in order of first use that still has jobs left."""
        later = self._order[self._order.index(file) + 1 :]
        return next((one for one in later if self._uses[one]), None)
