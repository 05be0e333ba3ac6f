"""Keep typed lines and the last sessions in the user's own folder, for later chats.

history             lines typed at the prompt
sessions/MODEL-TIME.safetensors
                    a conversation with its cache, as /save writes it; MODEL is a digest
pictures/DIGEST.ENDING
                    pictures from the clipboard and the web
"""

import contextlib
import os
import sys
import time
from pathlib import Path

KEPT_SESSIONS, KEPT_BYTES = 3, 10 * 10**9  # of each model
DIGEST_LENGTH = 16
KEPT_PICTURES = 200


def state_folder() -> Path | None:
    """The folder for state; None for a user without a home."""
    try:
        home = Path.home()
    except RuntimeError:
        home = None
    if root := os.environ.get("XDG_STATE_HOME"):
        return Path(root) / "mlx-llama4"
    if home is None:
        return None
    states = "Library/Application Support" if sys.platform == "darwin" else ".local/state"
    return home / states / "mlx-llama4"


def made_folder(*parts: str) -> Path | None:
    """Make a folder inside it, private to this user; None if that fails."""
    folder = state_folder()
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for part in parts:  # one by one, since the mode applies only to the last folder
            folder /= part
            folder.mkdir(exist_ok=True, mode=0o700)
    except OSError:
        return None
    return folder


def sessions_of(model: str) -> list[Path]:
    """The sessions kept for the model with this digest, newest first."""
    folder = state_folder()
    if folder is None:
        return []
    files = [*(folder / "sessions").glob(f"{model[:DIGEST_LENGTH]}-*.safetensors")]
    return sorted(files, key=lambda file: file.name, reverse=True)


def new_session(model: str) -> Path | None:
    """The path for a new session; None if the folder cannot be made."""
    folder = made_folder("sessions")
    if folder is None:
        return None
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}"
    return folder / f"{model[:DIGEST_LENGTH]}-{stamp}.safetensors"


def drop_old_sessions(model: str) -> None:
    """Delete all but the newest few sessions, and if those are large, all but the newest."""
    total = 0
    for index, file in enumerate(sessions_of(model)):
        with contextlib.suppress(OSError):
            total += file.stat().st_size
            if index and (index >= KEPT_SESSIONS or total > KEPT_BYTES):
                file.unlink()


def drop_old_pictures() -> None:
    """Delete all but the newest pictures."""
    folder = state_folder()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        files = sorted((folder / "pictures").iterdir(), key=lambda file: file.stat().st_mtime_ns)
        for file in files[:-KEPT_PICTURES]:
            file.unlink()
