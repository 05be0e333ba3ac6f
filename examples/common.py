"""What the examples share: opening a model, one-line errors, files that a run can continue."""

import argparse
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import CHECKPOINT
from mlx_llama4.errors import Llama4Error, OutputError
from mlx_llama4.hub.repository import find_folder

Main = Callable[[Sequence[str] | None], None]


def argument_parser(docstring: str | None) -> argparse.ArgumentParser:
    """With the script's docstring as its --help, and --model."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=docstring, formatter_class=form)
    parser.add_argument("--model", help="a converted folder, or OWNER/NAME; default: the demo's")
    return parser


def open_chat(model: str | None, options: ChatOptions | None = None) -> Chat:
    """model: as the command line takes it; None: the demo's, converted for this run."""
    if model is not None:
        return Chat.open(find_folder(model), options)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "demo"
        convert(CHECKPOINT, folder, Recipe("bfloat16", quantization=None))
        return Chat.open(folder, options)  # weights are in memory from here on


def reports_errors(main: Main) -> Callable[..., int]:
    """Have `main` return an exit code, and say in one line what went wrong."""

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # names of files may not be Unicode
        try:
            main(argv)
        except Llama4Error as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        except OSError as failure:
            where = "standard output" if failure.filename is None else failure.filename
            print(f"error: {failure.strerror}: {where}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        return 0

    return wrapped


def finished_lines(path: Path, begins: str) -> list[str]:
    """What earlier runs have written, less a last line that a kill has cut in two.

    begins: how a file of ours does. Raises OutputError for another, lest something be added to it.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    if not begins.encode().startswith(data[: len(begins.encode())]):
        raise OutputError(f"{path} was not written by this script; name another file")
    return data.decode(errors="replace").split("\n")[:-1]


def say_what_is_left(output: Path, things: str, total: int, left: int) -> None:
    """things: what a line of `output` is about, as "pictures"."""
    if left:
        print(f"{total} {things}, {left} of them to do; into {output}", file=sys.stderr)
    else:
        print(f"{output} has all {total} {things}; remove it to begin again", file=sys.stderr)


def open_to_append(path: Path) -> TextIO:
    """Each line reaches the system as soon as it is written; a last line that was cut in two is
    removed. Names of files that are not Unicode are written as JSON escapes them: \\udcff.
    """
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    return path.open("a", buffering=1, encoding="utf-8", errors="backslashreplace", newline="\n")
