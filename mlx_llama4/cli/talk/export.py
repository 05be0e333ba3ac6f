"""Export a conversation as Markdown or JSON, with its pictures beside it."""

import contextlib
import filecmp
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_llama4.errors import InputError, OutputError, RunError

if TYPE_CHECKING:
    from mlx_llama4.prompt.image import PromptImage
    from mlx_llama4.prompt.messages import Message

HEADINGS = {"system": "System", "user": "Question", "assistant": "Answer", "ipython": "Result"}


def export(messages: Sequence["Message"], path: Path) -> int:
    """Write the messages to `path` (.md or .json), and the pictures to a folder of the same name.

    Markdown and JSON of the same name share the folder. Returns how many pictures could not be
    copied because their files are gone. Raises InputError for another suffix, OutputError if the
    output exists, RunError if it cannot be written.
    """
    write = {".md": _markdown, ".json": _json}.get(path.suffix.lower())
    if write is None:
        raise InputError(f"{path} must end in .md or .json, which says how to write it")
    folder = path.with_name(f"{path.stem}-pictures")
    temporary = path.with_name(f".{os.getpid()}{path.suffix}")
    pictures = _Pictures(folder)
    try:
        shared = any(path.with_suffix(other).is_file() for other in (".md", ".json"))
        for place in (path, folder):
            if os.path.lexists(place) and not (place is folder and shared and folder.is_dir()):
                raise OutputError(
                    f"{place} is there already; give another name, or remove it first"
                )
        try:
            temporary.write_text(write(messages, pictures), encoding="utf-8")
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            pictures.remove()
            raise
    except OSError as failure:
        raise RunError(f"cannot write {path}: {failure.strerror or failure}") from None
    return pictures.missing


class _Pictures:
    """Copies each picture once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.missing = 0
        self._copied: dict[str, str] = {}
        self._made: list[Path] = []  # files of this export

    def copy(self, image: "PromptImage") -> str | None:
        """Copy a picture. Returns its path relative to the export; None if its file is gone."""
        if image.digest not in self._copied:
            if image.source is None or not image.source.is_file():
                self.missing += 1
                return None
            self.folder.mkdir(exist_ok=True)
            self._copied[image.digest] = f"{self.folder.name}/{self._place(image.source)}"
        return self._copied[image.digest]

    def _place(self, source: Path) -> str:
        """Copy a file, unless an earlier export has it. Returns its name in the folder."""
        for number in itertools.count(len(self._copied) + 1):
            file = self.folder / f"{number}{source.suffix.lower()}"
            if not os.path.lexists(file):
                self._made.append(file)
                shutil.copyfile(source, file)
                return file.name
            if filecmp.cmp(source, file, shallow=False):
                return file.name
        raise AssertionError("numbers have no end")

    def remove(self) -> None:
        """Take back what this export has copied."""
        for file in self._made:
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another export has pictures there
            self.folder.rmdir()


def _markdown(messages: Sequence["Message"], pictures: _Pictures) -> str:
    blocks = []
    for message in messages:
        blocks.append(f"## {HEADINGS.get(message['role'], message['role'])}")
        for part in _parts(message):
            if part["type"] == "text":
                blocks.append(part["text"].strip())
                continue
            path = pictures.copy(part["image"])
            width, height = part["image"].size
            size = f"{width}×{height} pixels"
            blocks.append(f"![{size}]({path})" if path else f"*(a picture of {size})*")
    return "\n\n".join(block for block in blocks if block) + "\n"


def _json(messages: Sequence["Message"], pictures: _Pictures) -> str:
    said = []
    for message in messages:
        entry: dict[str, Any] = {"role": message["role"], "content": []}
        for part in _parts(message):
            if part["type"] == "text":
                entry["content"].append({"type": "text", "text": part["text"]})
            else:
                image = part["image"]
                picture = {"type": "image", "path": pictures.copy(image), "size": list(image.size)}
                entry["content"].append(picture)
        if "tool_calls" in message:
            entry["tool_calls"] = message["tool_calls"]
        said.append(entry)
    return json.dumps({"messages": said}, ensure_ascii=False, indent=2) + "\n"


def _parts(message: "Message") -> Iterator[dict[str, Any]]:
    content = message["content"]
    if isinstance(content, str):
        yield {"type": "text", "text": content}
    else:
        yield from content
