"""Attach pictures to the next message, and tell what they cost."""

import contextlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_llama4.cli.console.terminal import CONTROLS
from mlx_llama4.cli.talk import state_files
from mlx_llama4.errors import Llama4Error

if TYPE_CHECKING:
    from mlx_llama4.chat import Chat
    from mlx_llama4.prompt.image import PromptImage

GLANCED_CHARACTERS = 4000  # of a message being typed


class Attachments:
    """Pictures for the next message: `pending`, until a message with them has been sent."""

    def __init__(self, chat: "Chat", show: Callable[["PromptImage"], None]):
        """show: called with each picture that is attached."""
        self._chat = chat
        self._show = show
        self.pending: list[PromptImage] = []
        # A path that is being typed is looked up again with each key.
        self._opened: dict[tuple[Path, int], PromptImage | None] = {}

    def attach(self, paths: list[Path]) -> None:
        """Attach all of the pictures, or none. Raises ImageError or PromptError."""
        for image in [self._known(path) or self._chat.open_image(path) for path in paths]:
            self.pending.append(image)
            self._show(image)
        self._opened.clear()

    def in_sight(self, text: str) -> list["PromptImage"]:
        """The pictures whose paths are in a text that is still being typed."""
        from mlx_llama4.cli.talk.dropped_paths import find_images

        if len(text) > GLANCED_CHARACTERS:
            return []
        found = find_images(text, self._attached())
        return [image for path in found.paths if (image := self._known(path))]

    def _known(self, path: Path) -> "PromptImage | None":
        """The picture at a path; None if unreadable, which is reported when it is sent."""
        with contextlib.suppress(OSError):
            key = path, path.stat().st_mtime_ns
            if key not in self._opened:
                self._opened[key] = None
                with contextlib.suppress(Llama4Error):
                    self._opened[key] = self._chat.open_image(path)
            return self._opened[key]
        return None

    def attach_named(self, argument: str) -> None:
        """Attach the argument of /image: one path as typed, if there is such a file; otherwise
        split it as a shell would.
        """
        self.attach([Path(path) for path in _paths(argument)])

    def attach_clipboard(self) -> None:
        """Attach the picture on the clipboard, saved as a file so that it can be exported later.

        Raises Llama4Error if there is none, or if the clipboard cannot be read.
        """
        from mlx_llama4.cli.talk.clipboard import clipboard_image

        data = clipboard_image()
        image = self._chat.open_image(data)
        folder = state_files.made_folder("pictures")
        if folder is not None:
            path = folder / f"{image.digest[:16]}.png"
            with contextlib.suppress(OSError):
                path.write_bytes(data)
                image = self._chat.open_image(path)
        self.pending.append(image)
        self._show(image)

    def take_from(self, text: str) -> str:
        """Attach the pictures whose paths are in the text. Returns the rest of the text."""
        from mlx_llama4.cli.talk.dropped_paths import find_images

        found = find_images(text, self._attached())
        self.attach(list(found.paths))
        return found.text

    def _attached(self) -> list[Path]:
        return [image.source or Path() for image in self.pending]


def name_of(image: "PromptImage") -> str:
    """The name of a picture's file, safe for a terminal."""
    return "picture" if image.source is None else image.source.name.translate(CONTROLS)


def facts_of(image: "PromptImage", tokens: int) -> str:
    """Describe the size and cost of a picture."""
    width, height = image.size
    tiles = "1 tile" if image.num_tiles == 1 else f"{image.num_tiles} tiles"
    return f"{width}×{height} pixels, {tiles}, {tokens:,} tokens"


def _paths(argument: str) -> list[str]:
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # too long for a path; "~nobody"
        if Path(argument).expanduser().exists():
            return [argument]
    try:
        return shlex.split(argument)
    except ValueError:  # an apostrophe that quotes nothing
        return [argument]
