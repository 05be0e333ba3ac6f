"""Decide which model a command uses: a named one, the default, or a release by its short name."""

from pathlib import Path
from typing import TYPE_CHECKING

from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.known_models import default_model, remember
from mlx_llama4.errors import InputError

if TYPE_CHECKING:
    from mlx_llama4.opening import ModelFolder

NO_MODEL = (
    "no model is named; give one with --model, or set a default: mlx-llama4 models --default "
    "MODEL; mlx-llama4 models lists what is here, mlx-llama4 plan says what fits this machine, "
    "mlx-llama4 demo -o demo-8bit makes a tiny one to try"
)


def open_model(typed: str | None, revision: str | None, *, keep: bool = True) -> "ModelFolder":
    """Open the model that was named, downloading it if it is on the hub.

    keep: remember it for `mlx-llama4 models`.
    Raises what `find_folder` and `open_folder` raise too.
    """
    from mlx_llama4.hub.repository import find_folder

    model = named_model(typed)
    folder = find_folder(model, revision)
    with terminal.status(f"Opening {folder}"):
        from mlx_llama4.opening import open_folder

        opened = open_folder(folder)
    if keep and Path(model).exists():  # the hub's cache is looked through anyway
        remember(folder)
    return opened


def named_model(typed: str | None) -> str:
    """Resolve the name of a model. typed: from --model or its environment variable, or None.

    A release's short name becomes its ready-made conversion on the hub. Raises InputError, saying
    what to type instead, if no model is named, or if the release's ready-made conversion suits this
    machine less than converting it here.
    """
    from mlx_llama4.hub.released import is_release

    model = typed or default_model()
    if model is None:
        raise InputError(NO_MODEL)
    return _ready_made(model) if is_release(model) else model


def _ready_made(release: str) -> str:
    from mlx_llama4.hub.released import READY_MADE_BITS, full_name, is_ready_made
    from mlx_llama4.planning.machine import this_machine
    from mlx_llama4.planning.plan_request import release_verdict

    verdict = release_verdict(release, this_machine())
    if verdict.how == "no":
        raise InputError(f"{verdict.line}; mlx-llama4 plan says what fits, --model takes a folder")
    if verdict.bits != READY_MADE_BITS or not is_ready_made(release):
        raise InputError(f"{verdict.line}; convert it first: {verdict.command}")
    repository = str(full_name(release))
    terminal.note(f"{release}: {repository}, downloaded once and kept in the hub's cache")
    return repository
