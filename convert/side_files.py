"""Copies the files that a model folder needs beside config and weights."""

from collections.abc import Mapping
from pathlib import Path

from mlx_llama4.checkpoint.open import Source
from mlx_llama4.convert.write import FolderWriter
from mlx_llama4.errors import CheckpointError

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE*",
    "USE_POLICY*",
    "NOTICE*",
)


def copy_side_files(source: Source, writer: FolderWriter, files: Mapping[str, str]) -> None:
    """files: name → text of files to write instead of copying."""
    made = {**source.files, **files}
    for name, text in made.items():
        writer.write_text(name, text)
    for pattern in SIDE_FILES:
        for path in sorted(source.folder.glob(pattern)):
            if path.is_file() and path.name not in made:
                check_inside(source.folder, path)
                writer.copy(path)


def check_inside(folder: Path, path: Path) -> None:
    """Raise CheckpointError for a link that leads out of its folder, perhaps to a file that is
    nobody else's business. The hub's cache links a snapshot's files to ../../blobs; those are fine.
    """
    folder, target = folder.resolve(), path.resolve()
    homes = [folder]
    if folder.parent.name == "snapshots":
        homes.append(folder.parent.parent / "blobs")
    if not any(target.is_relative_to(home) for home in homes):
        raise CheckpointError(
            f"{path} is a link to {target}, outside the folder; replace it by the file itself, or "
            "remove it"
        )
