"""Export a conversation as Markdown or JSON, with its pictures beside it."""

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

    Returns how many pictures could not be copied because their files are gone. Raises InputError
    for another suffix, OutputError if the output exists, RunError if it cannot be written.
    """
    write = {".md": _markdown, ".json": _json}.get(path.suffix.lower())
    if write is None:
        raise InputError(f"{path} must end in .md or .json, which says how to write it")
    folder = path.with_name(f"{path.stem}-pictures")
    temporary = path.with_name(f".{os.getpid()}{path.suffix}")
    pictures = _Pictures(folder)
    try:
        for place in (path, folder):
            if os.path.lexists(place):
                raise OutputError(
                    f"{place} is there already; give another name, or remove it first"
                )
        try:
            temporary.write_text(write(messages, pictures), encoding="utf-8")
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
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

    def copy(self, image: "PromptImage") -> str | None:
        """Copy a picture. Returns its path relative to the export; None if its file is gone."""
        if image.digest not in self._copied:
            if image.source is None or not image.source.is_file():
                self.missing += 1
                return None
            self.folder.mkdir(exist_ok=True)
            name = f"{len(self._copied) + 1}{image.source.suffix.lower()}"
            shutil.copyfile(image.source, self.folder / name)
            self._copied[image.digest] = f"{self.folder.name}/{name}"
        return self._copied[image.digest]


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
