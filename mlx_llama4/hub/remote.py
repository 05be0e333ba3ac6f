"""A checkpoint on the hub whose shards are fetched one by one, and deleted after use.

The headers come first, by range requests, so that everything can be checked and planned before any
weights are here. Files that the hub's cache already has are used in place, and never deleted.
"""

import re
import shutil
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_llama4.checkpoint.safetensors import (
    LENGTH_BYTES,
    Checkpoint,
    StoredTensor,
    assemble,
    header_length,
    parse_header,
    read_header,
)
from mlx_llama4.errors import RunError
from mlx_llama4.hub.repository import LIBRARY_NAME, download_side_files, hub_errors, shard_names
from mlx_llama4.hub.sums import check_fresh, check_sum

if TYPE_CHECKING:
    from huggingface_hub.utils import tqdm

# What the first request asks for; the headers of the released models' shards are smaller.
FIRST_BYTES = 2**16
HEADERS_AT_ONCE = 8
LOOK_SECONDS = 0.1
# A stopped download ends when the next bytes come; a stalled one ends with the process.
CLOSE_SECONDS = 1.0


@dataclass
class RemoteCheckpoint:
    """A checkpoint whose headers are here, and whose shards come when they are needed."""

    repository: str
    # Its folder has the side files; each tensor's file is the place where its shard will be.
    checkpoint: Checkpoint
    downloads: Path  # the folder that shards are fetched to
    sizes: dict[Path, int]  # bytes of the shards to fetch
    # Called with the number of bytes that have come, from another thread.
    on_bytes: Callable[[int], None] = lambda count: None
    verified: set[Path] = field(default_factory=set)  # files whose content is the hub's
    _seen: set[Path] = field(default_factory=set)  # of the hub's cache
    _running: dict[Path, "_Download"] = field(default_factory=dict)
    _stopped: bool = False

    @property
    def taken_bytes(self) -> int:
        """Bytes on the disk of shards, whole or partial, that an earlier run may have left."""
        whole = [file for file in self.sizes if file.is_file()]
        return sum(file.stat().st_blocks * 512 for file in [*whole, *self._broken_off()])

    def clear(self, needed: Collection[Path]) -> None:
        """Deletes what an earlier run left, except the shards needed. No other run may be using the
        folder.
        """
        for file in self._broken_off():
            file.unlink(missing_ok=True)
        for file in self.sizes.keys() - set(needed):
            file.unlink(missing_ok=True)

    def _broken_off(self) -> list[Path]:
        """A killed run's partial files, which huggingface_hub 2 neither resumes nor deletes."""
        return list(self.downloads.glob(".cache/**/*.incomplete"))

    def ensure(self, file: Path, following: Path | None = None) -> None:
        """Waits until a shard is here and compared with the hub's sum, then begins to fetch
        `following` in the background.

        Raises RunError if it cannot be fetched or came wrong, HubError if that is no longer
        allowed.
        """
        if file not in self.sizes and file not in self._seen:
            if check_sum(file, lambda: self._stopped):
                self.verified.add(file)
            self._seen.add(file)
        self._start(file)
        if download := self._running.get(file):
            while download.is_alive() and not download.stopped.is_set():
                download.join(LOOK_SECONDS)
            if download.stopped.is_set():
                raise RunError(f"the download of {file.name} was stopped")
            if download.error is not None:
                self._running.pop(file, None)
                with hub_errors(self.repository):
                    raise download.error
            if (size := file.stat().st_size) != self.sizes[file]:
                raise RunError(f"{file} has {size:,} bytes instead of {self.sizes[file]:,}")
        if following is not None:
            self._start(following)

    def release(self, file: Path) -> None:
        """Deletes a shard, unless it was in the hub's cache before."""
        if file in self.sizes:
            self._running.pop(file, None)
            file.unlink(missing_ok=True)

    def stop(self) -> None:
        """Stops all downloads, and every `ensure` that waits for one, for good."""
        self._stopped = True
        for download in list(self._running.values()):
            download.stopped.set()

    def close(self) -> None:
        """Stops, and waits briefly. Complete shards stay for the next run."""
        self.stop()
        for download in list(self._running.values()):
            download.join(CLOSE_SECONDS)
        self._running.clear()

    def discard(self) -> None:
        """Closes, and deletes the folder of downloads."""
        self.close()
        shutil.rmtree(self.downloads, ignore_errors=True)

    def _start(self, file: Path) -> None:
        if file in self.sizes and file not in self._running:
            download = self._running[file] = _Download(self, file)
            # Once `stop` can see the download: another thread may call it at any time.
            if self._stopped:
                download.stopped.set()
            download.start()


def open_remote(
    repository: str,
    revision: str | None = None,
    downloads: Path | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> RemoteCheckpoint:
    """Reads the headers of all shards, and checks them as for a folder.

    downloads: where shards will be put. Without it, none can be fetched.
    """
    folder = download_side_files(repository, revision)
    place = downloads or folder
    sizes: dict[Path, int] = {}

    def header(name: str) -> list[StoredTensor]:
        if (folder / name).is_file():
            return read_header(folder / name)
        size, tensors = _fetch_header(repository, folder.name, place / name)
        sizes[place / name] = size
        return tensors

    with hub_errors(repository, revision), ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
        headers = list(pool.map(header, shard_names(folder)))
    return RemoteCheckpoint(repository, assemble(folder, headers), place, sizes, on_bytes)


def _fetch_header(repository: str, commit: str, file: Path) -> tuple[int, list[StoredTensor]]:
    """The size of a file on the hub, and its tensors, as parts of `file`."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repository, file.name, revision=commit)
    size, data = _fetch_range(url, 0, FIRST_BYTES)
    end = LENGTH_BYTES + header_length(file, size, data)
    if end > len(data):
        data += _fetch_range(url, len(data), end)[1]
    if len(data) < end:
        raise RunError(f"{url} gave {len(data):,} of {end:,} bytes; try again")
    return size, parse_header(file, size, data[LENGTH_BYTES:end])


def _fetch_range(url: str, start: int, stop: int) -> tuple[int, bytes]:
    """The size of the whole file, and those of its bytes start … stop - 1 that exist."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    headers = build_hf_headers(library_name=LIBRARY_NAME) | {
        "Range": f"bytes={start}-{stop - 1}",
        "Accept-Encoding": "identity",
    }
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with http_stream_backoff("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        size = re.fullmatch(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status_code != 206 or size is None:
            # Without ranges the answer would be gigabytes, so it is not read.
            raise RunError(f"{url} gives no parts of files; download it whole, without streaming")
        return int(size[1]), response.read()


class _Download(threading.Thread):
    """The download of one shard; a daemon, so that Ctrl-C need not wait for gigabytes."""

    def __init__(self, remote: RemoteCheckpoint, file: Path):
        super().__init__(name=f"download of {file.name}", daemon=True)
        self.remote = remote
        self.file = file
        self.stopped = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        from huggingface_hub import hf_hub_download

        try:
            hf_hub_download(
                self.remote.repository,
                self.file.name,
                revision=self.remote.checkpoint.folder.name,
                local_dir=self.remote.downloads,
                tqdm_class=_meter(self),
                library_name=LIBRARY_NAME,
            )
            if check_fresh(self.file, self.stopped.is_set):
                self.remote.verified.add(self.file)
        except Exception as error:
            self.error = error


def _meter(download: _Download) -> "type[tqdm]":
    """A progress bar that shows nothing, counts bytes, and stops the download when asked to."""
    from huggingface_hub.utils import tqdm

    class Meter(tqdm):
        def __init__(self, *arguments: object, **options: object):
            super().__init__(*arguments, **(options | {"disable": True}))

        def update(self, n: float | None = 1) -> None:
            if download.stopped.is_set():
                raise RunError("stopped")
            download.remote.on_bytes(int(n or 0))

        # With these methods the hub makes one bar for bytes received and written, rather than two.
        def update_transfer(self, n: float | None = 1) -> None:
            pass

        def set_transfer_postfix_str(self, *arguments: object, **options: object) -> None:
            pass

    return Meter
