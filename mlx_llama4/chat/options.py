"""How a conversation is led: everything but what is said."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_llama4.generation.settings import DEFAULTS, GenerationSettings
from mlx_llama4.memory import PREFILL_SPAN
from mlx_llama4.quantization import KVQuantization

PREFIX_BYTES = 2 * 10**9


@dataclass
class ChatOptions:
    """Each may be changed between answers, unless it is said to be fixed once the Chat is made."""

    settings: GenerationSettings = DEFAULTS
    system: str | None = None
    # Tokens of a prompt that are worked through at once.
    prefill_step: int = PREFILL_SPAN
    # Of global layers' keys and values. Fixed.
    kv_quantization: KVQuantization | None = None
    # Bytes of earlier prompts' beginnings, kept for later ones. Fixed.
    prefix_bytes: int = PREFIX_BYTES
    # Tokens of prompt and answer that there is memory for. None: as many as the model allows.
    max_context: int | None = None
    # Is told how many of the oldest questions were dropped because the context is full. None: a
    # prompt that is too long is refused.
    on_dropped: Callable[[int], None] | None = None
    # Definitions of functions that the model may call.
    tools: Sequence[Mapping[str, Any]] | None = None
