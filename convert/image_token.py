"""Checks, before the work begins, that pictures will find their places in prompts."""

from mlx_llama4.checkpoint.open import Source
from mlx_llama4.errors import CheckpointError, ConfigError
from mlx_llama4.files.json_file import read_json

SLOT = "<|patch|>"  # the token that an image feature replaces


def check_image_token(source: Source) -> None:
    """Raises ConfigError if config.json means another token than the tokenizer's SLOT.

    Folders without a tokenizer.json pass: weights alone can be converted.
    """
    path = source.folder / "tokenizer.json"
    if source.config.vision is None or not path.is_file():
        return
    added = read_json(path, CheckpointError).get("added_tokens")
    tokens = [one for one in added if isinstance(one, dict)] if isinstance(added, list) else []
    (found,) = [one.get("id") for one in tokens if one.get("content") == SLOT][:1] or [None]
    if found != source.config.image_token_id:
        where = f"its id is {found}" if found is not None else "it has none"
        raise ConfigError(
            f"{source.folder}: config.json's image_token_index {source.config.image_token_id} is "
            f"not the tokenizer's {SLOT} ({where}); the files do not belong together"
        )
