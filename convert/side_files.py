"""Copies the files that a model folder needs beside config and weights."""

from collections.abc import Mapping

from mlx_llama4.checkpoint.open import Source
from mlx_llama4.convert.write import FolderWriter

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
                writer.copy(path)
