"""Running `mlx-llama4` in a process of its own."""

import os
import subprocess
import sys

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


def refused(*arguments: object, code: int = 2, text: str | None = None, **extra: str) -> str:
    """The one line that a command says when it cannot do what is asked."""
    result = run(*arguments, text=text, **extra)
    assert result.returncode == code, result
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]
