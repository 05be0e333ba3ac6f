"""Plans what a model needs to run, whether it fits a machine, and how long its context can be.

It uses the formulas of memory.py, a config and the bytes of the weights. Needs no MLX.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from mlx_llama4.config import Config
from mlx_llama4.errors import InputError
from mlx_llama4.files.dtypes import FLOAT_DTYPES
from mlx_llama4.memory import (
    CACHE_BLOCK_TOKENS,
    PREFILL_SPAN,
    CacheBytes,
    activation_bytes,
    cache_bytes,
    dequantized_bytes,
    feature_bytes,
    score_bytes,
    vision_bytes,
    weight_bytes,
)
from mlx_llama4.planning.machine import GIB, MIB, Machine
from mlx_llama4.quantization import UNPACKED_BITS, KVQuantization, packing
from mlx_llama4.tensors import Part, packed_alike

if TYPE_CHECKING:
    from mlx_llama4.checkpoint.matching import Matching
    from mlx_llama4.checkpoint.safetensors import StoredTensor

PLANNED_BITS = (3, 4, 5, 6, 8)
DEFAULT_BITS = 4
KV_BITS = (16, 8, 4)

# "raised": only if the GPU's limit is raised beyond macOS's default.
Fit = Literal["yes", "raised", "no"]


@dataclass(frozen=True)
class Usage:
    """What a model is used for, and how."""

    context: int  # tokens of prompt and answer
    dtype_bytes: int = 2  # of an element of activations and caches
    kv: KVQuantization | None = None
    tiles: tuple[int, ...] = ()  # of each picture in the prompt
    span: int = PREFILL_SPAN  # tokens of a prefill step
    fused: bool = True  # attention materialises no scores, as on a GPU
    streamed: bool = False  # routed experts are read from the disk


@dataclass(frozen=True)
class Need:
    """The memory that a model needs, in bytes."""

    # Held all the time:
    weights: int
    cache: CacheBytes
    features: int  # of pictures
    # In flight while text is read: activations, and one global layer's keys and values once more.
    activations: int
    dequantized: int  # unpacked
    growing: int  # copied, while its cache grows
    # In flight before that:
    vision: int

    @property
    def held(self) -> int:
        return self.weights + self.cache.total + self.features

    @property
    def in_flight(self) -> int:
        return max(self.prefill, self.vision)

    @property
    def prefill(self) -> int:
        return self.activations + max(self.dequantized, self.growing)

    @property
    def total(self) -> int:
        return self.held + self.in_flight


def dtype_bytes(dtype: str | None, machine: Machine) -> int:
    """Bytes of an unpacked element in memory, if config.json says `dtype`; see opening.py."""
    return 4 if dtype == "float32" or not machine.has_gpu else 2


def packed_weights(config: Config, bits: int, dtype_bytes: int) -> dict[Part, int]:
    """Bytes of each part, as `convert --bits` would pack them. Raises InputError."""
    wanted = None if bits == UNPACKED_BITS else packing(bits, None, None)
    return weight_bytes(config, packed_alike(wanted), dtype_bytes)


def stored_weights(matching: "Matching", dtype_bytes: int) -> dict[Part, int]:
    """Bytes of each part of a folder that can run as it is."""
    parts: dict[Part, int] = {}
    for name, spec in matching.specs.items():
        loaded = loaded_bytes(matching.sources[name].tensors, dtype_bytes)
        parts[spec.part] = parts.get(spec.part, 0) + loaded
    return parts


def loaded_bytes(tensors: "Iterable[StoredTensor]", dtype_bytes: int) -> int:
    """Bytes of stored tensors in memory, where opening.py brings all floats to one type."""
    return sum(
        math.prod(tensor.shape) * dtype_bytes if tensor.dtype in FLOAT_DTYPES else tensor.nbytes
        for tensor in tensors
    )


def need_of(config: Config, weights: int, usage: Usage) -> Need:
    """What a model needs. weights: their bytes in memory."""
    text, context, width = config.text, usage.context, usage.dtype_bytes
    # Caches that are packed late are largest just before.
    unpacked = min(context, usage.kv.after) if usage.kv else context
    caches = (cache_bytes(text, tokens, width, usage.kv) for tokens in (context, unpacked))
    cache = max(caches, key=lambda cache: cache.total)
    global_layers = sum(kind.attention == "global" for kind in text.layers)
    tiles = max(usage.tiles, default=0)
    vision = vision_bytes(config.vision, tiles, width) if config.vision and tiles else 0
    span = min(usage.span, context)
    scores = 0 if usage.fused else score_bytes(text, span, context, width)
    return Need(
        weights=weights,
        cache=cache,
        features=feature_bytes(config, sum(usage.tiles), width),
        activations=activation_bytes(text, span, width, usage.streamed) + scores,
        dequantized=dequantized_bytes(text, context, width, usage.kv),
        growing=cache.global_layers // max(global_layers, 1),
        vision=vision,
    )


def fit(total: int, machine: Machine) -> Fit:
    if total > machine.usable:
        return "no"
    return "raised" if machine.wired is not None and total > machine.wired else "yes"


def wired_limit_command(total: int, machine: Machine) -> str:
    """The command that lets a Mac's GPU wire `total` bytes until the next start."""
    rounded = -(-total // GIB) * GIB
    limit = rounded if rounded <= machine.usable else total
    return f"sudo sysctl iogpu.wired_limit_mb={-(-limit // MIB)}"


def largest_context(config: Config, weights: int, usage: Usage, budget: int) -> int:
    """The most tokens that fit `budget` bytes, in whole blocks or the model's maximum; 0: none.

    Caches that are packed from the start grow with the context. Others may shrink once, when they
    are packed.
    """
    limit = config.text.max_position_embeddings
    fitting, beyond = 0, -(-limit // CACHE_BLOCK_TOKENS) + 1
    while beyond - fitting > 1:
        blocks = (fitting + beyond) // 2
        context = min(blocks * CACHE_BLOCK_TOKENS, limit)
        if need_of(config, weights, replace(usage, context=context)).total <= budget:
            fitting = blocks
        else:
            beyond = blocks
    return min(fitting * CACHE_BLOCK_TOKENS, limit)


def machines_needed(need: Need, machine: Machine) -> int | None:
    """The fewest machines that can share evenly what is held; None if no number suffices."""
    room = machine.usable - need.in_flight
    return None if room <= 0 else max(1, -(-need.held // room))


def kv_choices(config: Config, group_size: int) -> dict[int, KVQuantization | None]:
    """Bits of keys and values → their packing, if the heads divide into groups."""
    divides = config.text.head_dim % group_size == 0
    return {
        bits: None if bits == UNPACKED_BITS else KVQuantization(bits, group_size)
        for bits in KV_BITS
        if bits == UNPACKED_BITS or divides
    }


def parse_tokens(text: str, option: str = "--context") -> int:
    """ "128K", "1M" or "131072" → tokens. K is 1,024 and M is its square, as in the models' names.

    Raises InputError, which names the option.
    """
    match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d+)?)\s*([KM]?)\s*", text.upper())
    tokens = int(float(match[1]) * 1024 ** " KM".index(match[2] or " ")) if match else 0
    if tokens < 1:
        raise InputError(f"{option} {text}: write a number of tokens, such as 131072, 128K or 1M")
    return tokens


def tokens_name(tokens: int) -> str:
    """Tokens for people, rounded down: "10M", "1.4M", "128K", "900"."""
    if tokens >= MIB:
        return f"{tokens * 10 // MIB / 10:g}M"
    return f"{tokens // 1024}K" if tokens >= 1024 else str(tokens)


@dataclass(frozen=True)
class Subject:
    """A model to plan for."""

    name: str
    config: Config
    dtype_bytes: int  # of an element that is not packed
    stored: Mapping[Part, int] | None = None  # bytes of each part, if it can run as it is stored


@dataclass(frozen=True)
class Choice:
    """A model in one packing."""

    bits: int | None  # a weight; None: as it is stored
    weights: Mapping[Part, int]  # bytes of each part
    need: Need
    fit: Fit
    largest: Mapping[int, int]  # bits of keys and values → the most tokens that fit the machine


@dataclass(frozen=True)
class MemoryPlan:
    """A model on a machine, in each packing."""

    subject: Subject
    machine: Machine
    usage: Usage
    chosen: Choice  # the packing asked for
    choices: tuple[Choice, ...]  # that and the other packings
    machines: int | None  # machines like this that share it; None if no number suffices

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes that each token adds in global layers; chunked ones stop growing."""
        usage = self.usage
        text, block = self.subject.config.text, CACHE_BLOCK_TOKENS
        return cache_bytes(text, block, usage.dtype_bytes, usage.kv).global_layers // block

    @property
    def wired_limit_command(self) -> str | None:
        """The command to raise the GPU's limit; None if it is not needed or would not help."""
        if self.chosen.fit != "raised":
            return None
        return wired_limit_command(self.chosen.need.total, self.machine)


def make_plan(
    subject: Subject,
    machine: Machine,
    usage: Usage,
    bits: int | None = None,
    kv_group_size: int = 64,
) -> MemoryPlan:
    """bits: of the weights; None: as they are stored, or 4.

    Raises InputError for a context beyond the model's, and for unknown packings.
    """
    limit = subject.config.text.max_position_embeddings
    if usage.context > limit:
        raise InputError(
            f"--context {tokens_name(usage.context)}: {subject.name} takes at most {limit:,} tokens"
        )
    if usage.kv is not None:
        usage.kv.check(subject.config.text.head_dim)
    wanted = DEFAULT_BITS if bits is None and subject.stored is None else bits
    counts = sorted({*PLANNED_BITS, *([] if wanted is None else [wanted])})
    choices = [
        _choice(subject, machine, usage, one, kv_group_size)
        for one in ([None] if subject.stored is not None else []) + counts
    ]
    chosen = next(choice for choice in choices if choice.bits == wanted)
    return MemoryPlan(
        subject,
        machine,
        usage,
        chosen,
        tuple(choices),
        machines_needed(chosen.need, machine),
    )


def _choice(
    subject: Subject, machine: Machine, usage: Usage, bits: int | None, kv_group_size: int
) -> Choice:
    config = subject.config
    stored = subject.stored
    weights = stored if bits is None else packed_weights(config, bits, subject.dtype_bytes)
    if weights is None:
        raise ValueError(f"{subject.name} cannot run as it is stored")
    total = sum(weights.values())
    need = need_of(config, total, usage)
    largest = {
        kv_bits: largest_context(config, total, replace(usage, kv=kv), machine.usable)
        for kv_bits, kv in kv_choices(config, kv_group_size).items()
    }
    return Choice(bits, weights, need, fit(need.total, machine), largest)


def announced_weights(parameters: int, bits: int) -> int:
    """Approximate bytes of `parameters` weights. Of Behemoth, nothing better is known."""
    if bits == UNPACKED_BITS:
        return 2 * parameters
    packed = packing(bits, None, None)
    return int(parameters * (packed.bits + 2 * 16 / packed.group_size) / 8)
