"""One process, measured from outside: seconds, CPU seconds, the most memory it held."""

import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.harness.process_memory import read_memory
from mlx_llama4.errors import RunError

SAMPLE_SECONDS = 0.01
# No network while the clock runs. Bytecode is kept, as that of installed packages is: otherwise
# ours, run from the repository, would be compiled at every start.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
} | {"HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Usage:
    """What a process took, and what it printed."""

    seconds: float
    cpu_seconds: float
    peak_resident_bytes: int  # on Linux the system's own high-water mark
    peak_anonymous_bytes: int  # the highest of samples SAMPLE_SECONDS apart
    output: str

    @property
    def result(self) -> Any:
        """The JSON value in its last line."""
        return json.loads(self.output.splitlines()[-1])


def run_measured(command: Sequence[str], folder: Path) -> Usage:
    """Run a command in `folder` to its end. Raises RunError with its last words if it fails."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
        )
        try:
            with PeakMemory(process.pid) as peak:
                # Not getrusage's ru_maxrss: on Linux it starts at what this process held.
                _, status, used = os.wait4(process.pid, 0)
                seconds = time.perf_counter() - start
                process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()
        if process.returncode != 0:
            raise RunError(last_words(process.returncode, errors))
        return Usage(
            seconds=seconds,
            cpu_seconds=used.ru_utime + used.ru_stime,
            peak_resident_bytes=peak.resident_bytes,
            peak_anonymous_bytes=peak.anonymous_bytes,
            output=_text(output),
        )


class PeakMemory:
    """Watches the memory of a process for as long as the context lasts."""

    def __init__(self, pid: int):
        self.resident_bytes = 0
        self.anonymous_bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while (memory := read_memory(self._pid)) is not None:
            self.resident_bytes = max(self.resident_bytes, memory.peak_resident_bytes)
            self.anonymous_bytes = max(self.anonymous_bytes, memory.anonymous_bytes)
            if self._ended.wait(SAMPLE_SECONDS):
                return


def last_words(code: int, errors: IO[bytes]) -> str:
    """How a process ended, and the last line it wrote to standard error."""
    how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
    lines = [line.strip() for line in _text(errors).splitlines() if line.strip()]
    return f"{how}: {lines[-1]}" if lines else how


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="replace")
