"""Remember the model folders that this user has run or made, and the default model.

Both are in models.json in the state folder (cli/talk/state_files.py). Commands ignore what cannot
be read or written there.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

from mlx_llama4.cli.talk.state_files import made_folder, state_folder
from mlx_llama4.errors import OutputError

FILE_NAME = "models.json"
MOST_SEEN = 100


def default_model() -> str | None:
    """The name or folder set by `mlx-llama4 models --default`."""
    found = _read().get("default")
    return found if isinstance(found, str) else None


def set_default(model: str | None) -> None:
    """Set the default model, or unset it (None).

    Raises OutputError if the state folder cannot be written.
    """
    state = _read() | {"default": model}
    try:
        _write(state)
    except OSError as failure:
        place = state_folder()
        raise OutputError(f"cannot write {place}: {failure.strerror}; set XDG_STATE_HOME") from None


def seen_folders() -> list[Path]:
    """The remembered folders that still exist, the latest first."""
    names = _read().get("seen")
    names = names if isinstance(names, list) else []
    folders = [Path(name) for name in names if isinstance(name, str)]
    return [folder for folder in folders if (folder / "config.json").is_file()]


def remember(folder: Path) -> None:
    """Note that this folder was used."""
    path = folder.resolve()
    others = [str(one) for one in seen_folders() if one != path]
    with contextlib.suppress(OSError):
        _write(_read() | {"seen": [str(path), *others][:MOST_SEEN]})


def _read() -> dict[str, Any]:
    folder = state_folder()
    if folder is None:
        return {}
    try:
        found = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(state: dict[str, Any]) -> None:
    """Write the file in one step, since two commands may end at once."""
    folder = made_folder()
    if folder is None:
        raise OSError(None, "the state folder cannot be made")
    file = folder / FILE_NAME
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    temporary.replace(file)
