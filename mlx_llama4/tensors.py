"""Lists every tensor of an MLX model folder: its name, its shape, and its part of the model.

The names are those of published conversions, which mlx-lm and mlx-vlm read too. One table, derived
from the config alone, tells the converter what to write, loading and `inspect` what must be there,
and the memory formulas what it weighs.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from mlx_llama4.config import Config, LayerKind, TextConfig, VisionConfig
from mlx_llama4.quantization import Quantization

Part = Literal[
    "embedding",
    "attention",
    "router",
    "routed experts",
    "shared expert",
    "dense MLP",
    "norms",
    "head",
    "vision tower",
    "projector",
]

# What is packed unless a rule says otherwise. Norms are vectors, and the vision tower is under 2%
# of the bytes and sees only once what the text tower then has to work with.
QUANTIZED_PARTS: frozenset[Part] = frozenset(
    {"embedding", "attention", "routed experts", "shared expert", "dense MLP", "head"}
)
# Not even a rule packs these, though packed ones may be kept: the router weighs 160 KB and
# decides which 70 MB are used at all.
UNPACKED_PARTS: frozenset[Part] = frozenset({"router", "norms"})

EMBEDDING = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
VISION_PREFIXES = ("vision_model.", "multi_modal_projector.")


@dataclass(frozen=True)
class TensorSpec:
    """A tensor before quantization."""

    shape: tuple[int, ...]  # [out, in] or, stacked, [experts, out, in]
    part: Part
    is_edge: bool = False  # does it belong to the first or last text layer?

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def model_tensors(config: Config) -> dict[str, TensorSpec]:
    """Name → spec of every unquantized tensor, in the order that a forward pass uses them."""
    tensors: dict[str, TensorSpec] = {}
    if config.vision is not None:
        tensors.update(_vision(config.vision))
        tensors["multi_modal_projector.linear_1.weight"] = TensorSpec(
            (config.text.hidden_size, config.vision.vision_output_dim), "projector"
        )
    text = config.text
    embedding = (text.vocab_size, text.hidden_size)
    tensors[EMBEDDING] = TensorSpec(embedding, "embedding")
    for index, kind in enumerate(text.layers):
        prefix = f"language_model.model.layers.{index}"
        is_edge = index in (0, text.num_hidden_layers - 1)
        for name, spec in _layer(text, kind):
            tensors[f"{prefix}.{name}"] = replace(spec, is_edge=is_edge)
    tensors["language_model.model.norm.weight"] = TensorSpec((text.hidden_size,), "norms")
    tensors[HEAD] = TensorSpec(embedding, "head")
    return tensors


def without_absent_vision(config: Config, names: Iterable[str]) -> Config:
    """The config of a folder with these tensors: text-only if it has no vision tensors.

    mlx-lm leaves the vision weights out of its conversions, and keeps vision_config in some.
    """
    if config.vision is None or any(name.startswith(VISION_PREFIXES) for name in names):
        return config
    return replace(config, vision=None, image_token_id=None)


def is_matrix(name: str, spec: TensorSpec) -> bool:
    """Can tensor `name` be packed at all?"""
    return name.endswith(".weight") and len(spec.shape) > 1


def in_whole_groups(packing: Quantization | None, spec: TensorSpec) -> Quantization | None:
    """`packing`, or None for a tensor whose rows do not divide into groups of that size."""
    return packing if packing is None or spec.shape[-1] % packing.group_size == 0 else None


def packed_alike(
    packing: Quantization | None,
) -> Callable[[str, TensorSpec], Quantization | None]:
    """How `convert --bits` packs each tensor."""

    def of(name: str, spec: TensorSpec) -> Quantization | None:
        is_packed = is_matrix(name, spec) and spec.part in QUANTIZED_PARTS
        return in_whole_groups(packing, spec) if is_packed else None

    return of


def quantized_tensors(
    name: str, shape: tuple[int, ...], quantization: Quantization
) -> dict[str, tuple[int, ...]]:
    """Name → shape of the tensors that replace `name`, a `….weight`, when it is packed.

    Codes are packed into uint32 words along the last axis. Each group of neighbours has a scale
    and, in affine mode, a bias.
    """
    *outer, width = shape
    module = name.removesuffix(".weight")
    groups = (*outer, width // quantization.group_size)
    packed = {
        name: (*outer, width * quantization.bits // 32),
        f"{module}.scales": groups,
    }
    if quantization.mode == "affine":
        packed[f"{module}.biases"] = groups
    return packed


def _layer(text: TextConfig, kind: LayerKind) -> Iterator[tuple[str, TensorSpec]]:
    hidden = text.hidden_size
    yield "input_layernorm.weight", TensorSpec((hidden,), "norms")
    widths = {
        "q_proj": (text.num_attention_heads * text.head_dim, hidden),
        "k_proj": (text.num_key_value_heads * text.head_dim, hidden),
        "v_proj": (text.num_key_value_heads * text.head_dim, hidden),
        "o_proj": (hidden, text.num_attention_heads * text.head_dim),
    }
    for name, shape in widths.items():
        yield f"self_attn.{name}.weight", TensorSpec(shape, "attention")
        if text.attention_bias:
            yield f"self_attn.{name}.bias", TensorSpec(shape[:1], "attention")
    yield "post_attention_layernorm.weight", TensorSpec((hidden,), "norms")
    if kind.feed_forward == "dense":
        yield from _mlp("feed_forward", hidden, text.intermediate_size_mlp, "dense MLP")
        return
    experts, width = text.num_local_experts, text.intermediate_size
    yield "feed_forward.router.weight", TensorSpec((experts, hidden), "router")
    for name, spec in _mlp("feed_forward.experts", hidden, width, "routed experts"):
        yield name, TensorSpec((experts, *spec.shape), spec.part)
    yield from _mlp("feed_forward.shared_expert", hidden, width, "shared expert")


def _mlp(prefix: str, hidden: int, width: int, part: Part) -> Iterator[tuple[str, TensorSpec]]:
    yield f"{prefix}.gate_proj.weight", TensorSpec((width, hidden), part)
    yield f"{prefix}.up_proj.weight", TensorSpec((width, hidden), part)
    yield f"{prefix}.down_proj.weight", TensorSpec((hidden, width), part)


def _vision(vision: VisionConfig) -> Iterator[tuple[str, TensorSpec]]:
    hidden, width = vision.hidden_size, vision.intermediate_size
    patch = vision.num_channels * vision.patch_size**2

    def spec(*shape: int) -> TensorSpec:
        return TensorSpec(shape, "vision tower")

    yield "vision_model.patch_embedding.linear.weight", spec(hidden, patch)
    yield "vision_model.class_embedding", spec(hidden)
    positions = vision.patches_per_side**2 + 1
    yield "vision_model.positional_embedding_vlm", spec(positions, hidden)
    for norm in ("layernorm_pre", "layernorm_post"):
        yield f"vision_model.{norm}.weight", spec(hidden)
        yield f"vision_model.{norm}.bias", spec(hidden)
    linears = {
        f"self_attn.{name}": (hidden, hidden) for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    }
    linears |= {"mlp.fc1": (width, hidden), "mlp.fc2": (hidden, width)}
    for index in range(vision.num_hidden_layers):
        prefix = f"vision_model.model.layers.{index}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{norm}.weight", spec(hidden)
            yield f"{prefix}.{norm}.bias", spec(hidden)
        for name, shape in linears.items():
            yield f"{prefix}.{name}.weight", spec(*shape)
            yield f"{prefix}.{name}.bias", spec(shape[0])
    adapter = "vision_model.vision_adapter.mlp"
    yield f"{adapter}.fc1.weight", spec(vision.projector_input_dim, width)
    yield f"{adapter}.fc2.weight", spec(vision.projector_output_dim, vision.projector_output_dim)


def layer_number(name: str) -> int:
    """The layer of a tensor: "language_model.model.layers.N.…" → N."""
    return int(name.partition(".layers.")[2].partition(".")[0])
