"""Runs a command on a terminal of its own until it shows a text."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.process_memory import read_memory
from mlx_llama4.errors import RunError

ROWS, COLUMNS = 24, 80
LONGEST_SECONDS = 120
# What programs ask a terminal, and a plain one's answers: what it can do, where the cursor is.
ANSWERS = {b"\x1b[c": b"\x1b[?62c", b"\x1b[6n": b"\x1b[1;1R"}
ESCAPES = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[P_^X\]].*?(?:\x1b\\|\x07)|[^\[P_^X\]])", re.DOTALL
)


@dataclass(frozen=True)
class Shown:
    """A process at the moment when it showed the text."""

    seconds: float  # since it was started
    cpu_seconds: float
    peak_resident_bytes: int
    anonymous_bytes: int


def run_until_shown(
    command: Sequence[str], text: str, folder: Path, environment: Mapping[str, str]
) -> Shown:
    """Run a command in `folder` until it shows `text`, then kill it.

    Raises RunError with its last words if it ends first or takes longer than LONGEST_SECONDS.
    """
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (ROWS, COLUMNS))
    start = time.perf_counter()
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, "TERM": "xterm-256color"},
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
        )
    except OSError as failure:
        os.close(ours)
        raise RunError(f"cannot start {command[0]}: {failure.strerror}") from None
    finally:
        os.close(its)
    try:
        shown = _wait_for(ours, text.encode())
        seconds = time.perf_counter() - start
        memory = read_memory(process.pid)
    finally:
        # Not with Popen, which would reap a process that has ended and lose what it used.
        os.kill(process.pid, signal.SIGKILL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        os.close(ours)
    if shown is not None or memory is None:
        raise RunError(shown or "it ended")
    return Shown(
        seconds,
        used.ru_utime + used.ru_stime,
        memory.peak_resident_bytes,
        memory.anonymous_bytes,
    )


def _wait_for(terminal: int, text: bytes) -> str | None:
    """Read until `text` is shown. Returns None then, else why not, with the last line shown."""
    until = time.perf_counter() + LONGEST_SECONDS
    seen = io.BytesIO()
    while (left := until - time.perf_counter()) > 0:
        if not select.select([terminal], [], [], left)[0]:
            break
        try:
            more = os.read(terminal, 65536)
        except OSError:  # Linux, once no process has the terminal open
            more = b""
        if not more:
            break
        seen.write(more)
        for question, answer in ANSWERS.items():
            if question in more:
                os.write(terminal, answer)
        if text in ESCAPES.sub(b"", seen.getvalue()):
            return None
    lines = ESCAPES.sub(b"", seen.getvalue()).decode(errors="replace").splitlines()
    words = [line.strip() for line in lines if line.strip()]
    return f"no prompt: {words[-1]}" if words else "no prompt"
