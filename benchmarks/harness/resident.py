"""A process that stays: it gets ready once, then does one thing each time it is asked.

Nothing is asked of it while another one works, so that engines can take turns at a few tokens.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.engines import Engine
from benchmarks.harness.process import ENVIRONMENT, last_words
from benchmarks.harness.process_memory import Memory, read_memory
from mlx_llama4.errors import RunError

# Follows code that defines answer(question), both of what JSON can say. Whatever else the engine
# prints is passed over.
MARK = "answer: "
SERVE = f"""
import json, sys
print("{MARK}null", flush=True)
for line in sys.stdin:
    print("{MARK}" + json.dumps(answer(json.loads(line))), flush=True)
"""


class Resident:
    """An engine's process. Python code defines `answer(question)`; its sys.argv[1:] are given."""

    def __init__(self, engine: Engine, code: str, arguments: tuple[object, ...], folder: Path):
        """Returns once the code has run. Raises RunError with its last words if it fails."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed in close)
        try:
            self._process = subprocess.Popen(
                engine.command(code + SERVE, *arguments),
                cwd=folder,
                env=ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        except OSError as failure:
            self._errors.close()
            raise RunError(f"cannot start {engine.python}: {failure.strerror}") from None
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Resident":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, question: object) -> Any:
        """Raises RunError if it ends instead of answering."""
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reason is among its last words
        return self._read()

    def memory(self) -> Memory:
        """Now. Raises RunError if it has ended."""
        memory = read_memory(self.pid)
        if memory is None:
            raise RunError("it ended")
        return memory

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _read(self) -> Any:
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise RunError(last_words(self._process.wait(), self._errors))
