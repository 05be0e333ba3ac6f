"""Processes that stay: each gets ready once, then does one thing each time it is asked.

While one works the others idle, so engines can take turns at a few tokens each.
"""

import json
import subprocess
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.engines import Engine, program
from benchmarks.harness.process import ENVIRONMENT, last_words
from benchmarks.harness.process_memory import Memory, read_memory
from mlx_llama4.errors import RunError

# Follows code that defines answer(question); question and answer are JSON values. Lines without
# the mark are the engine's own output and are skipped.
MARK = "answer: "
SERVE = f"""
import json, sys
print("{MARK}null", flush=True)
for line in sys.stdin:
    print("{MARK}" + json.dumps(answer(json.loads(line))), flush=True)
"""


class Resident:
    """A process of an engine that runs code defining `answer(question)`."""

    def __init__(self, engine: Engine, code: str, arguments: tuple[object, ...], folder: Path):
        """Returns once the code has run, with `arguments` as its sys.argv[1:].

        Raises RunError with the process's last words if it fails.
        """
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
        """The process's answer. Raises RunError if the process ends instead."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # _read tells why, from the last words
        return self._read()

    def memory(self) -> Memory:
        """Of the process now. Raises RunError if it has ended."""
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
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        raise RunError(last_words(self._process.wait(), self._errors))


def start_resident(
    engine: Engine, name: str, arguments: tuple[object, ...], folder: Path
) -> Resident:
    """Run programs/NAME.py, told the engine's name before the arguments."""
    return Resident(engine, program(name), (engine.name, *arguments), folder)


class Residents:
    """A process per engine that runs programs/NAME.py, from when it is first wanted to the end."""

    def __init__(self, name: str, arguments: tuple[object, ...], folder: Path):
        self._start = partial(start_resident, name=name, arguments=arguments, folder=folder)
        self._processes: dict[str, Resident] = {}
        self._open = ExitStack()

    def __enter__(self) -> "Residents":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._open.close()

    def of(self, engine: Engine) -> Resident:
        if engine.name not in self._processes:
            self._processes[engine.name] = self._open.enter_context(self._start(engine))
        return self._processes[engine.name]
