"""Send a request to the worker, in a process group that is killed afterwards in any case."""

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

MAX_BYTES = 1_000_000  # kept from each stream; the rest is read and dropped
READ_BYTES = 1 << 16
WAIT = 0.05  # seconds between checks that the process is alive, in case a stream stays open
GRACE = 1.0  # seconds in which to exit after answering


@dataclass(frozen=True)
class Outcome:
    """What came of a request to the worker."""

    answer: bytes  # a line of JSON, if there is one
    printed: bytes  # by the tool, on standard output
    dropped: int  # how many more bytes were printed
    exit_code: int | None  # None: the process did not end in time


def ask_worker(request: dict[str, Any], timeout_seconds: float) -> Outcome:
    """Run a request in a worker process, and wait for its outcome.

    Raises OSError if no process can be started. An exception while waiting, such as Ctrl-C, ends
    the process and is passed on.
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
                # -P: no file in the working folder can pass for one of our modules.
                [sys.executable, "-P", "-m", "mlx_llama4.tools.worker", str(writing)],
                stdin=asked,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[writing],
                start_new_session=True,
            )
        assert process.stdout is not None  # it was opened as a pipe
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
        """Read what is there without waiting; returns whether there was anything."""
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
        """Read at most a pipe's capacity: a process that left its group may write for ever."""
        for _ in range(MAX_BYTES // READ_BYTES):
            if self.ended or not self.read():
                break


def _follow(
    process: subprocess.Popen[bytes], streams: tuple[_Stream, _Stream], deadline: float
) -> int | None:
    """Read the streams until the process ends. Returns its exit code; None if it ran too long."""
    answer, _ = streams
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            os.set_blocking(stream.file.fileno(), False)
            selector.register(stream.file, selectors.EVENT_READ, stream)
        answered = False
        # The end of a stream proves nothing: processes that the tool started may hold it open.
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
