"""Running `mlx-llama4`, in a process of its own or in this one."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

from typer.testing import CliRunner

ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "MLX_LLAMA4_MODEL"}


def run(*arguments: object, text: str | None = None, **extra: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "mlx_llama4", *map(str, arguments)],
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT | extra,
        check=False,
    )


def run_here(
    *arguments: object, text: str | None = None, **extra: str
) -> subprocess.CompletedProcess:
    """As `run`, without the second that a new process takes to import everything."""
    from mlx_llama4.cli.main import app

    words = [*map(str, arguments)]
    with _process_left_alone():
        result = CliRunner(env={"MLX_LLAMA4_MODEL": None, **extra}).invoke(app, words, input=text)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)


@contextlib.contextmanager
def _process_left_alone() -> Iterator[None]:
    """Commands take signals for the rest of their process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def refused(*arguments: object, code: int = 2, text: str | None = None, **extra: str) -> str:
    """The one line that a command says when it cannot do what is asked.

    In this process, unless it needs an environment: libraries read theirs when they are imported.
    """
    result = (run if extra else run_here)(*arguments, text=text, **extra)
    assert result.returncode == code, result
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]
