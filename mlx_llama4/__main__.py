"""Where the `mlx-llama4` command and `python -m mlx_llama4` begin and end.

Imports nothing before it can take a Ctrl-C.
"""

import io
import os
import signal
import sys


def run() -> None:
    """Run the command line; whatever happens, end without a traceback."""
    try:
        _prepare_streams()
        for number in (signal.SIGTERM, signal.SIGHUP):
            # So that temporary folders are cleared away as after Ctrl-C.
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
        code = _run_app()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except OSError as failure:
        # The reader has gone, or the disk is full: keep Python from failing again at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(failure, BrokenPipeError):
            print(f"error: cannot write the output: {failure.strerror}", file=sys.stderr)
        code = 1
    sys.exit(code)


def _run_app() -> int | str | None:
    from mlx_llama4.cli.main import app

    try:
        app()
    except SystemExit as end:
        return end.code
    return 0


def _prepare_streams() -> None:
    """Stand in for streams that the caller closed, and let no character be refused by one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "replace"),
        (sys.stderr, "replace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


if __name__ == "__main__":
    run()
