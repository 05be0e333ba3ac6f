"""A request to the worker, in a process group that is gone afterwards, whatever the tool does."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

MAX_BYTES = 1_000_000  # kept of each stream; what comes after is read and dropped
READ_BYTES = 1 << 16
WAIT = 0.05  # seconds between looks at whether the process lives, should a stream stay open
GRACE = 1.0  # seconds to end in, after the answer


@dataclass(frozen=True)
class Outcome:
    """answer: a line of JSON, if there is one. printed: by the tool, on standard output; dropped:
    bytes more of it. exit_code: None if the process had not ended in time.
    """

    answer: bytes
    printed: bytes
    dropped: int
    exit_code: int | None


def ask_worker(request: dict[str, Any], timeout_seconds: float) -> Outcome:
    """Raises OSError if no process can be started. An exception in the waiting, Ctrl-C's say,
    ends the process and is passed on.
    """
    deadline = time.monotonic() + timeout_seconds
    with contextlib.ExitStack() as stack:
        asked = stack.enter_context(tempfile.TemporaryFile())
        asked.write(json.dumps(request).encode())
        asked.seek(0)
        reading, writing = os.pipe()
        answer = stack.enter_context(os.fdopen(reading, "rb", 0))
        with os.fdopen(writing, "wb", 0):
            process = subprocess.Popen(
                # -P: nothing of the working folder is taken for a module of ours.
                [sys.executable, "-P", "-m", "mlx_llama4.tools.worker", str(writing)],
                stdin=asked,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[writing],
                start_new_session=True,
            )
        assert process.stdout is not None  # a pipe was asked for
        printed = stack.enter_context(process.stdout)
        streams = _Stream(answer), _Stream(printed)
        try:
            exit_code = _follow(process, streams, deadline)
        finally:
            _kill_group(process.pid)
            process.wait()
        for stream in streams:
            stream.drain()
        said, shown = streams
        return Outcome(bytes(said.kept), bytes(shown.kept), shown.dropped, exit_code)


@dataclass
class _Stream:
    file: Any
    kept: bytearray = field(default_factory=bytearray)
    dropped: int = 0
    ended: bool = False

    def read(self) -> bool:
        """Whether something had come; without waiting for it."""
        try:
            new = os.read(self.file.fileno(), READ_BYTES)
        except BlockingIOError:
            return False
        self.ended = not new
        kept = new[: MAX_BYTES - len(self.kept)]
        self.kept += kept
        self.dropped += len(new) - len(kept)
        return bool(new)

    def drain(self) -> None:
        """What a pipe holds at most: a process that has left its group may write on for ever."""
        for _ in range(MAX_BYTES // READ_BYTES):
            if self.ended or not self.read():
                break


def _follow(
    process: subprocess.Popen[bytes], streams: tuple[_Stream, _Stream], deadline: float
) -> int | None:
    """Read the streams until the process ends; its exit code, None if it did not end in time."""
    answer, _ = streams
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            os.set_blocking(stream.file.fileno(), False)
            selector.register(stream.file, selectors.EVENT_READ, stream)
        answered = False
        # The end of a stream tells nothing: processes that the tool has started may hold it open.
        while process.poll() is None and (left := deadline - time.monotonic()) > 0:
            if not selector.get_map():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(left)
                break
            for key, _ in selector.select(min(WAIT, left)):
                key.data.read()
                if key.data.ended:
                    selector.unregister(key.fileobj)
            if not answered and answer.kept.endswith(b"\n"):
                answered, deadline = True, time.monotonic() + GRACE
    return process.poll()


def _kill_group(process_id: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process_id, signal.SIGKILL)
