"""Attach pictures to the next message, and tell what they cost."""

import contextlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.console.terminal import CONTROLS
from mlx_llama4.cli.talk import state_files
from mlx_llama4.cli.talk.lost_names import files_in, say_lost
from mlx_llama4.errors import ImageError, Llama4Error

if TYPE_CHECKING:
    from mlx_llama4.chat import Chat
    from mlx_llama4.prompt.image import PromptImage

GLANCED_CHARACTERS = 4000  # of a message being typed
MOST_URLS = 8  # of pictures that are fetched for one message, which may be a pasted page


class Attachments:
    """Pictures for the next message: `pending`, until a message with them has been sent."""

    def __init__(
        self, chat: "Chat", show: Callable[["PromptImage"], None], keeps_pictures: bool = True
    ):
        """show: called with each picture that is attached. keeps_pictures: whether pictures from
        the clipboard and the web become files, so that they can be shown and exported later.
        """
        self._chat = chat
        self._show = show
        self._keeps_pictures = keeps_pictures
        self.pending: list[PromptImage] = []
        # A path that is being typed is looked up again with each key.
        self._opened: dict[tuple[Path, int], PromptImage | None] = {}

    def attach(
        self, names: Sequence[Path | str], fetched: Mapping[str, "PromptImage"] | None = None
    ) -> None:
        """Attach all of the pictures, or none. Raises ImageError or PromptError.

        names: paths, and URLs: those in `fetched`, and others, which are fetched now.
        """
        known = fetched or {}
        images = [
            self._known(name) or self._chat.open_image(name)
            if isinstance(name, Path)
            else known.get(name) or self._fetched(name)
            for name in names
        ]
        for image in images:
            self.pending.append(image)
            self._show(image)
        self._opened.clear()

    def _fetched(self, url: str) -> "PromptImage":
        """Fetch a picture, and keep its file so that it can be shown and exported later."""
        from mlx_llama4.prompt.fetch import fetch
        from mlx_llama4.prompt.picture_source import data_of, kind_of

        fetching = self._chat.processor.fetching
        if kind_of(url) == "data":
            data = data_of(url, fetching.most_bytes)
            return self._kept(self._chat.open_image(url), data, _ending(url))
        with terminal.status("Fetching a picture"):
            found = fetch(url, fetching)
        return self._kept(self._chat.open_image(found), found.data, _ending(url))

    def _kept(self, image: "PromptImage", data: bytes, ending: str) -> "PromptImage":
        """The picture with a file of its own, if one can be written."""
        folder = state_files.made_folder("pictures") if self._keeps_pictures else None
        if folder is not None:
            path = folder / f"{image.digest[:16]}.{ending}"
            with contextlib.suppress(OSError):
                path.write_bytes(data)
                state_files.drop_old_pictures()
                return replace(image, source=path)
        return image

    def in_sight(self, text: str) -> list["PromptImage"]:
        """The pictures whose paths are in a text that is still being typed."""
        from mlx_llama4.cli.talk.dropped_paths import find_images

        if len(text) > GLANCED_CHARACTERS:
            return []
        found = find_images(text, self._attached())
        paths = [path for path in found.paths if isinstance(path, Path)]
        return [image for path in paths if (image := self._known(path))]

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
        self.attach([_as_name(name) for name in _paths(argument)])

    def attach_clipboard(self) -> None:
        """Attach the picture on the clipboard, saved as a file so that it can be exported later.

        Raises Llama4Error if there is none, or if the clipboard cannot be read.
        """
        from mlx_llama4.cli.talk.clipboard import clipboard_image

        data = clipboard_image()
        image = self._kept(self._chat.open_image(data), data, "png")
        self.pending.append(image)
        self._show(image)

    def take_from(self, text: str) -> str:
        """Attach the pictures whose paths or URLs are in the text. Returns the rest of the text.

        Tells the user which names in it lead nowhere, since the model sees them as text.
        """
        from mlx_llama4.cli.talk.dropped_paths import find_images

        fetched, lost = self._fetch_from(text)
        found = find_images(text, self._attached(), fetched)
        self.attach(found.paths, fetched)
        say_lost([*found.lost, *files_in(found.text)], lost)
        return found.text

    def refuse_in(self, text: str) -> None:
        """Raise Llama4Error if a text names pictures; tell the user which names lead nowhere."""
        from mlx_llama4.cli.talk.dropped_paths import find_images
        from mlx_llama4.cli.talk.pasted_urls import is_of_a_picture, urls_in

        found = find_images(text)
        if found.paths or any(map(is_of_a_picture, urls_in(text))):
            raise Llama4Error("a message's pictures stay as they are; /undo, and send it again")
        say_lost([*found.lost, *files_in(text)])

    def _fetch_from(self, text: str) -> tuple[dict[str, "PromptImage"], list[str]]:
        """Fetch the pictures whose URLs are in a text. Returns them, and what to say of others."""
        from mlx_llama4.cli.talk.pasted_urls import is_of_a_picture, urls_in
        from mlx_llama4.prompt.fetch import shown

        urls = urls_in(text)
        pictures = list(filter(is_of_a_picture, urls))
        said = [
            f"{shown(url)} does not end like a picture; /image URL fetches it"
            for url in urls
            if url not in pictures
        ]
        known = {_url_of(image): image for image in self.pending}
        if self._chat.processor.tiler is None:
            return {}, [*said, *(f"{shown(url)}: this model takes no pictures" for url in pictures)]
        if len(pictures) > MOST_URLS:
            many = f"{len(pictures)} URLs of pictures, more than the {MOST_URLS} that are fetched"
            return {}, [*said, f"{many} for one message; /image URL fetches one"]
        fetched = {}
        for url in pictures:
            try:
                fetched[url] = known.get(url) or self._fetched(url)
            except ImageError as error:
                said.append(str(error))
        return fetched, said

    def _attached(self) -> list[Path | str]:
        return [_url_of(image) or image.source or Path() for image in self.pending]


def _url_of(image: "PromptImage") -> str | None:
    from mlx_llama4.prompt.image import TiledImage

    return image.url if isinstance(image, TiledImage) else None


def _ending(url: str) -> str:
    """The ending of a file for the picture at a URL. It is for people; programs look inside."""
    from mlx_llama4.prompt.fetch import file_name
    from mlx_llama4.prompt.picture_source import SUFFIXES

    if url[:5].lower() == "data:":
        ending = url.partition(";")[0].rpartition("/")[2].lower()
    else:
        ending = file_name(url).rpartition(".")[2].lower()
    return ending if ending in SUFFIXES else "png"


def _as_name(name: str) -> Path | str:
    from mlx_llama4.prompt.picture_source import kind_of, path_of

    kind = kind_of(name)
    return name if kind in ("web", "data") else Path(path_of(name) or name)


def name_of(image: "PromptImage") -> str:
    """The name of a picture, safe for a terminal."""
    from mlx_llama4.prompt import image as images

    return images.name_of(image).translate(CONTROLS)


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
