"""The settings of a conversation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_llama4.generation.settings import DEFAULTS, GenerationSettings
from mlx_llama4.memory import PREFILL_SPAN, PREFIX_BYTES
from mlx_llama4.quantization import KVQuantization


@dataclass
class ChatOptions:
    """Settings of a Chat. All but those marked fixed may change between answers."""

    settings: GenerationSettings = DEFAULTS
    system: str | None = None
    # How many tokens of a prompt to process at once. None: as many as suit the machine.
    prefill_step: int | None = None
    # How to quantize the global layers' keys and values. Fixed.
    kv_quantization: KVQuantization | None = None
    # How many bytes of earlier prompts' beginnings to keep for reuse. Fixed.
    prefix_bytes: int = PREFIX_BYTES
    # How many tokens of prompt and answer fit in memory. None: as many as the model allows.
    max_context: int | None = None
    # Called with the number of old questions dropped because the context is full. None: refuse a
    # prompt that is too long.
    on_dropped: Callable[[int], None] | None = None
    # Definitions of the functions that the model may call.
    tools: Sequence[Mapping[str, Any]] | None = None

    @property
    def span(self) -> int:
        """How many tokens of a prompt to process at once."""
        return PREFILL_SPAN if self.prefill_step is None else self.prefill_step
