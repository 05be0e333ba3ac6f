"""Save a conversation with its cache to a prompt cache on disk, and load it."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_llama4.cache.prefixes import PrefixStore
from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.cache.prompt_file import PromptFile, save_prompt_file
from mlx_llama4.chat.conversation import Part, document_turn, with_document
from mlx_llama4.checkpoint.identity import Identity
from mlx_llama4.errors import CheckpointError, PromptError
from mlx_llama4.generation.image_features import ImageFeatureCache
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.checks import check_message
from mlx_llama4.prompt.image import PromptImage, RememberedImage
from mlx_llama4.prompt.messages import Message, image_parts
from mlx_llama4.prompt.prompt import Prompt, place_images
from mlx_llama4.quantization import KVQuantization


@dataclass
class ConversationState:
    """The part of a Chat that is saved to a file and loaded from one."""

    messages: list[Message]
    document: list[Part]
    cache: PromptCache
    prefixes: PrefixStore
    features: ImageFeatureCache
    system: str | None
    quantization: KVQuantization | None

    @property
    def is_document_pending(self) -> bool:
        """Does the next question begin with the document?"""
        return bool(self.document) and document_turn(self.messages, self.document) is None


def save_chat(
    path: Path,
    state: ConversationState,
    model: Llama4,
    identity: Identity | None,
    open_prompt: Callable[[list[Part]], Prompt],
    small: bool,
) -> int:
    """Implement `Chat.save`. open_prompt: the bound `Chat.open_prompt`."""
    # An interruption may have left layers and tokens out of step.
    cache = state.cache
    held = cache.rewind(len(cache.ids))
    if not (held or state.document or state.messages):
        raise PromptError("nothing has been read or said yet that could be saved")
    if state.is_document_pending:
        # Whatever came after the document has been forgotten.
        cache, prompt = cache.copy(), open_prompt(state.document)
        images = place_images(prompt, model.config)
        state.prefixes.fit(cache, np.append(prompt.ids, 0), images)

    def features_of(image: PromptImage) -> mx.array | None:
        """Encode them again if they were dropped and the pixels are available."""
        with contextlib.suppress(PromptError):
            return state.features.get(model, image)
        return None

    return save_prompt_file(
        path,
        cache,
        _known(identity),
        conversation={
            "messages": state.messages,
            "document": state.document,
            "document_turn": document_turn(state.messages, state.document),
        },
        pictures=[
            part["image"] for part in image_parts([*state.messages, {"content": state.document}])
        ],
        features_of=features_of,
        small=small,
    )


def load_chat(
    path: Path, former: ConversationState, model: Llama4, identity: Identity | None
) -> ConversationState:
    """Implement `Chat.load`: return the conversation in a file.

    `former` is not changed; the result shares its prefix store and its features.
    """
    file = PromptFile(path)
    file.check(_known(identity), former.quantization)
    quantization = former.quantization or file.quantization
    dtype = model.language_model.model.norm.weight.dtype
    loaded = file.load(model.make_cache(quantization), dtype)
    try:
        said = [loaded.conversation[key] for key in ("messages", "document", "document_turn")]
        messages, document, turn = said
        _check(messages, document, turn, model.config.text.vocab_size)
        if turn is not None:  # the file has two copies of the document; keep one
            rest = messages[turn]["content"][len(document) :]
            messages[turn] = with_document(messages[turn] | {"content": rest}, document)
        system = next((m["content"] for m in messages[:1] if m["role"] == "system"), None)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, PromptError):
        raise CheckpointError(f"{path} is damaged; make it again") from None
    prefixes = former.prefixes
    if quantization != former.quantization:
        # A fork may share the former store, and still use its keys and values as they were.
        prefixes = PrefixStore(prefixes.chunk_size, prefixes.budget)
    state = ConversationState(
        messages, document, loaded.cache, prefixes, former.features, system, quantization
    )
    for digest, features in loaded.features.items():
        state.features.put(digest, features)
    if state.is_document_pending:  # the cache ends where the document does
        prefixes.keep_tail(state.cache)
    return state


def _check(messages: Any, document: Any, turn: Any, vocab_size: int) -> None:
    """Raise one of several errors unless a file's conversation has the form that we write."""
    if not (isinstance(messages, list) and isinstance(document, list)):
        raise TypeError(messages)
    for message in [*messages, {"role": "user", "content": document}]:
        check_message(message)
        ids = message.get("token_ids") or []
        if not all(type(i) is int and 0 <= i < vocab_size for i in ids):
            raise ValueError(ids)
        for part in image_parts([message]):
            if not isinstance(part["image"], RememberedImage):
                raise TypeError(part)
    if turn is not None and not (type(turn) is int and 0 <= turn < len(messages)):
        raise TypeError(turn)


def _known(identity: Identity | None) -> Identity:
    if identity is None:
        raise PromptError("this Chat does not know its folder; make it with Chat.open(folder)")
    return identity
