"""What a model folder needs beside config and weights, and where it comes from."""

from mlx_llama4.convert.formats import Source
from mlx_llama4.convert.write import FolderWriter

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer.model",
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


def copy_side_files(source: Source, writer: FolderWriter) -> None:
    for pattern in SIDE_FILES:
        for path in sorted(source.folder.glob(pattern)):
            if path.is_file():
                writer.copy(path)
