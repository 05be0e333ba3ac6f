"""How a conversation is led: everything but what is said."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_llama4.generation.adjustments import Adjustment
from mlx_llama4.generation.drafting import MakeDrafter
from mlx_llama4.generation.grammar import Grammar
from mlx_llama4.generation.sampler import Sampler, greedy
from mlx_llama4.memory import PREFILL_SPAN
from mlx_llama4.quantization import KVQuantization

PREFIX_BYTES = 2 * 10**9


@dataclass
class ChatOptions:
    """kv_quantization: of global layers' keys and values; fixed once the Chat is made.
    prefix_bytes: of earlier prompts' beginnings, kept for later ones; fixed too. max_context:
    tokens of prompt and answer that there is memory for; None asks the model alone. on_dropped: is
    told how many of the oldest questions were dropped because the context is full; None: a prompt
    that is too long is refused. tools: definitions of functions that the model may call. `stop` and
    what follows are as `generate` takes them.
    """

    max_tokens: int = 4096
    sampler: Sampler = greedy
    system: str | None = None
    prefill_step: int = PREFILL_SPAN
    kv_quantization: KVQuantization | None = None
    prefix_bytes: int = PREFIX_BYTES
    max_context: int | None = None
    on_dropped: Callable[[int], None] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    stop: tuple[str, ...] = ()
    adjustments: tuple[Adjustment, ...] = ()
    grammar: Grammar | None = None
    logprobs: int | None = None
    draft: MakeDrafter | None = None
