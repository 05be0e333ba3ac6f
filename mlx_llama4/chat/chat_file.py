"""A conversation and its cache ↔ a prompt cache on disk."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_llama4.cache.prefixes import PrefixStore
from mlx_llama4.cache.prompt_file import PromptFile, save_prompt_file
from mlx_llama4.chat.conversation import document_turn, with_document
from mlx_llama4.checkpoint.identity import Identity
from mlx_llama4.errors import CheckpointError, PromptError
from mlx_llama4.generation.generate import Statistics
from mlx_llama4.prompt.image import PromptImage
from mlx_llama4.prompt.messages import image_parts
from mlx_llama4.prompt.processor import place_images

if TYPE_CHECKING:
    from mlx_llama4.chat import Chat


def save_chat(chat: "Chat", path: Path, small: bool) -> int:
    """As `Chat.save`."""
    # An interruption may have left layers and tokens out of step.
    held = chat.cache.rewind(len(chat.cache.ids))
    if not (held or chat.document or chat.messages):
        raise PromptError("nothing has been read or said yet that could be saved")
    cache = chat.cache
    if chat.is_document_pending:
        # What came after the document was forgotten.
        cache, prompt = cache.copy(), chat.open_prompt(chat.document)
        images = place_images(prompt, chat.model.config)
        chat.prefixes.fit(cache, np.append(prompt.ids, 0), images)

    def features_of(image: PromptImage) -> mx.array | None:
        """Encoded anew if they were dropped and the pixels are at hand."""
        with contextlib.suppress(PromptError):
            return chat.features.get(chat.model, image)
        return None

    return save_prompt_file(
        path,
        cache,
        _identity(chat),
        conversation={
            "messages": chat.messages,
            "document": chat.document,
            "document_turn": document_turn(chat.messages, chat.document),
        },
        pictures=[
            part["image"] for part in image_parts([*chat.messages, {"content": chat.document}])
        ],
        features_of=features_of,
        small=small,
    )


def load_chat(chat: "Chat", path: Path) -> None:
    """As `Chat.load`."""
    file = PromptFile(path)
    options = chat.options
    file.check(_identity(chat), options.kv_quantization)
    quantization = options.kv_quantization or file.quantization
    dtype = chat.model.language_model.model.norm.weight.dtype
    loaded = file.load(chat.model.make_cache(quantization), dtype)
    try:
        said = [loaded.conversation[key] for key in ("messages", "document", "document_turn")]
        messages, document, turn = said
        if turn is not None:  # of the file's two copies of the document, one shall do
            rest = messages[turn]["content"][len(document) :]
            messages[turn] = with_document(messages[turn] | {"content": rest}, document)
        opening = next((m["content"] for m in messages[:1] if m["role"] == "system"), None)
    except (KeyError, TypeError, IndexError):
        raise CheckpointError(f"{path} is damaged; make it again") from None
    chat.messages, chat.document, options.system = messages, document, opening
    if quantization != options.kv_quantization:
        # A fork may have the former store too, and go on with keys and values as they were.
        chat.prefixes = PrefixStore(chat.prefixes.chunk_size, options.prefix_bytes)
    options.kv_quantization = quantization
    chat.cache = loaded.cache
    for digest, features in loaded.features.items():
        chat.features.put(digest, features)
    if chat.is_document_pending:  # the cache ends where the document does
        chat.prefixes.keep_tail(chat.cache)
    chat.statistics = Statistics()


def _identity(chat: "Chat") -> Identity:
    if chat.identity is None:
        raise PromptError("this Chat does not know its folder; make it with Chat.open(folder)")
    return chat.identity
