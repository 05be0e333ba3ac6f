"""`mlx-llama4 models`: list the models on this machine, and set the default model."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import InputError

if TYPE_CHECKING:
    from mlx_llama4.planning.local_models import LocalModel

WORDS = {
    "in memory": "runs here, all in memory",
    "limit raised": "runs here once the GPU may hold more (see: mlx-llama4 plan {model})",
    "streamed": "runs here, its experts streamed from the SSD",
    "too large": "too large for this machine",
    "not converted": "not converted yet",
    "incomplete": "incomplete (see: mlx-llama4 inspect {model})",
}


@terminal.reports_errors
def models(
    default: Annotated[
        str | None,
        typer.Option(
            "--default",
            metavar="MODEL",
            help="Use this model when none is named; 'none' unsets it.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the models on this machine, their sizes, and which of them fit.

    Looks at folders that you used or made before, the current folder, and the Hugging Face hub's
    cache.

    \b
    Examples:
      mlx-llama4 models
      mlx-llama4 models --default scout-4bit
    """
    from mlx_llama4.cli.known_models import default_model, seen_folders, set_default
    from mlx_llama4.planning.local_models import find_models
    from mlx_llama4.planning.machine import this_machine

    if default is not None:
        set_default(_checked(default))
        terminal.note(
            "No model is the default any more." if default == "none" else f"Default: {default}"
        )
        return
    here = sorted(path.parent for path in Path().glob("*/config.json"))
    found = find_models([*here, *seen_folders()], this_machine())
    chosen = default_model()
    if as_json:
        rows = [asdict(model) | {"folder": str(model.folder)} for model in found]
        terminal.line(json.dumps({"default": chosen, "models": rows}, indent=2))
        return
    for model in found:
        _print(model, _is_default(model, chosen))
    _print_next(found, chosen)


def _checked(typed: str) -> str | None:
    """The default as it is stored: a folder's absolute path, since commands may run anywhere."""
    from mlx_llama4.hub.released import is_release
    from mlx_llama4.hub.repository import is_repository

    if typed == "none":
        return None
    if is_release(typed) or is_repository(typed):
        return typed
    if not (Path(typed) / "config.json").is_file():
        raise InputError(
            f"--default {typed}: there is no model folder of that name; give a folder, "
            "OWNER/NAME on the hub, scout, maverick or guard"
        )
    return str(Path(typed).resolve())


def _is_default(model: "LocalModel", chosen: str | None) -> bool:
    return chosen is not None and chosen in (model.name, str(model.folder))


def _print(model: "LocalModel", is_default: bool) -> None:
    from mlx_llama4.units import human_bytes

    marks = [*(["in the hub's cache"] if model.from_hub else []), *(["default"] * is_default)]
    terminal.line(model.name + (f"  ({', '.join(marks)})" if marks else ""))
    terminal.line(f"  {model.variant}; {model.packing}; {human_bytes(model.nbytes)}")
    terminal.line(f"  {WORDS[model.state].format(model=shlex.quote(model.name))}")


def _print_next(found: list["LocalModel"], chosen: str | None) -> None:
    runnable = [one for one in found if one.state in ("in memory", "limit raised", "streamed")]
    if chosen is not None:
        terminal.line("Next: mlx-llama4 chat")
    elif runnable:
        name = shlex.quote(runnable[0].name)
        terminal.line(f"Next: mlx-llama4 chat --model {name}")
        terminal.line(f"To make it the default: mlx-llama4 models --default {name}")
    elif sources := [one for one in found if one.state == "not converted"]:
        name = shlex.quote(sources[0].name)
        terminal.line(f"Next: mlx-llama4 convert {name} OUTPUT_FOLDER")
    else:
        terminal.line("No Llama 4 model that runs is here. To see which one fits this machine:")
        terminal.line("  mlx-llama4 plan")
        terminal.line("To try the built-in tiny one:")
        terminal.line("  mlx-llama4 demo -o demo-8bit")
