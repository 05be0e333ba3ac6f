"""`mlx-llama4 doctor`: check that models compute correctly here, and how fast; write a report."""

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_llama4.cli import options
from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import OutputError, RunError

if TYPE_CHECKING:
    from mlx_llama4.doctor.asking import ModelSpeed
    from mlx_llama4.opening import ModelFolder
    from mlx_llama4.planning.placement import Placement

SEND = (
    "Please paste this into an issue of the project, from a Mac above all. It names no user, host, "
    "folder or file."
)


@terminal.reports_errors
def doctor(
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            metavar="FOLDER",
            help="Also measure this converted model. The report does not name its path.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the report to this file. Default: print it.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, not Markdown.")
    ] = False,
) -> None:
    """Check that this machine computes correctly, and how fast. Takes a minute, needs no network.

    Runs small models on the GPU and the CPU and compares them with the reference's values. Measures
    memory, disk and tokens a second. The report is meant to be shared: it names nothing private.

    Exit code 1 if a check fails.

    \b
    Examples:
      mlx-llama4 doctor
      mlx-llama4 doctor --model scout-4bit -o report.md
    """
    if output is not None:
        _check_output(output)
    # Products of reduced precision would hide the errors that the checks look for.
    os.environ.setdefault("MLX_ENABLE_TF32", "0")
    terminal.import_mlx()
    from mlx_llama4.doctor.examine import examine
    from mlx_llama4.doctor.report import as_json as report_json
    from mlx_llama4.doctor.report import markdown, verdict
    from mlx_llama4.doctor.unknown import Unknown
    from mlx_llama4.opening import disable_compile_on_cpu, open_folder
    from mlx_llama4.planning.admission import Task

    disable_compile_on_cpu()
    if model is None:
        report = examine(terminal.status)
    else:
        folder = open_folder(model)
        placement = options.place_model(folder, Task())
        files = sorted(model.glob("*.safetensors"))
        report = examine(terminal.status, files, lambda: _measure(folder, placement))
    text = json.dumps(report_json(report), indent=2) + "\n" if as_json else markdown(report)
    if output is None:
        terminal.line(text.rstrip("\n"))
        terminal.note("")
    else:
        _write(output, text)
        terminal.note(f"Written to {output}.")
    if report.failures:
        terminal.note(f"error: {verdict(report)[:-1]}; please report it")
    if isinstance(report.model, Unknown):
        terminal.note(f"error: the model could not be measured: {report.model.why}")
    terminal.note(SEND)
    if report.failures or isinstance(report.model, Unknown):
        raise typer.Exit(1)


def _measure(folder: "ModelFolder", placement: "Placement") -> "ModelSpeed":
    from mlx_llama4.chat import Chat, ChatOptions
    from mlx_llama4.doctor.asking import measure_model
    from mlx_llama4.opening import load_model

    start = time.perf_counter()
    chat_options = ChatOptions(prefill_step=placement.usage.span)
    with terminal.status("Loading the model"):
        # Unlike `chat`, do not remember which experts these questions need.
        model = load_model(folder, streaming=placement.streaming)
        chat = Chat(model, folder.processor, chat_options, folder)
    seconds = time.perf_counter() - start
    with terminal.status("Measuring the model"):
        return measure_model(folder.path, chat, seconds)


def _check_output(path: Path) -> None:
    """Check the output path before spending a minute. Raises OutputError."""
    if os.path.lexists(path):
        raise OutputError(f"{path} is there already; give another name, or remove it first")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}; make it first")
    try:
        path.touch(exist_ok=False)
        path.unlink()
    except OSError as failure:
        raise OutputError(f"cannot write {path}: {failure.strerror or failure}") from None


def _write(path: Path, text: str) -> None:
    """Write the report whole, or print it if that fails. Raises RunError."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as failure:
        terminal.line(text.rstrip("\n"))
        raise RunError(f"cannot write {path}: {failure.strerror or failure}") from None
