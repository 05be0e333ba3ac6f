"""Where Meta's files store each tensor of the model: under which name, and which part of it.

The names follow the load hooks of the reference (llama-models, models/llama4), which also read the
names of the reference's own modules. What each rank holds follows its models/checkpoint.py. Queries
and keys keep their order: the reference rotates neighbours, as we do.
"""

import re
from dataclasses import dataclass
from typing import Literal

from mlx_llama4.config import TextConfig

IGNORED = {
    r"(.*\.)?_extra_state": "scales of training in 8 bits",
    r"rope\.freqs": "RoPE frequencies follow from rope_theta and the scaling",
    r"layers\.\d+\.feed_forward\.(global|running)_gate_stats_3E": "statistics of training",
    r"layers\.\d+\.feed_forward\.expert_activation_DE": "statistics of training",
}


@dataclass(frozen=True)
class Place:
    """Where a model tensor is stored."""

    name: str
    axis: int | None = None  # the model tensor's axis that ranks divide; None: each has all of it
    share: tuple[int, int, int] = (0, 1, 1)  # pieces start … stop - 1 of `whole` equal ones
    # "experts": [experts · in, out] or [experts, in, out]. "transposed": [in, out].
    form: Literal["as is", "experts", "transposed"] = "as is"


def places(target: str, text: TextConfig) -> tuple[Place, ...]:
    """The ways to store a model tensor, the releases' first."""
    if match := re.fullmatch(r"language_model\.model\.layers\.(\d+)\.(.+)", target):
        found = _text_layer(match[2], text)
        return tuple(_inside(f"layers.{match[1]}", place) for place in found)
    if match := re.fullmatch(r"vision_model\.model\.layers\.(\d+)\.(.+)", target):
        prefix = f"vision_embeddings.vision_encoder.transformer.resblocks.{match[1]}"
        return (_inside(prefix, VISION_LAYER[match[2]]),)
    return (OUTSIDE_LAYERS[target],)


def is_ignored(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in IGNORED)


def scales_of(name: str) -> str:
    """Our name for a tensor's scales; separate files store them under the tensor's own name."""
    return f"scales of {name}"


def _inside(prefix: str, place: Place) -> Place:
    return Place(f"{prefix}.{place.name}", place.axis, place.share, place.form)


def _text_layer(name: str, text: TextConfig) -> tuple[Place, ...]:
    if name in TEXT_LAYER:
        return TEXT_LAYER[name]
    # Rows of a rank's queries, then its keys, then its values.
    heads, pairs = text.num_attention_heads, text.num_key_value_heads
    whole = heads + 2 * pairs
    shares = {
        "q": (0, heads, whole),
        "k": (heads, heads + pairs, whole),
        "v": (heads + pairs, whole, whole),
    }
    kind = name.removeprefix("self_attn.").removesuffix("_proj.weight")
    return (
        Place("attention.wqkv.weight", 0, shares[kind]),
        Place(f"attention.w{kind}.weight", 0),
    )


TEXT_LAYER = {
    "input_layernorm.weight": (
        Place("attention.wqkv.layer_norm_weight"),
        Place("attention_norm.weight"),
    ),
    "self_attn.o_proj.weight": (Place("attention.wo.weight", 1),),
    "post_attention_layernorm.weight": (
        Place("feed_forward.norm.weight"),  # of a layer with experts
        Place("feed_forward.mlp.layer_norm_weight"),  # of a dense one
        Place("ffn_norm.weight"),
    ),
    "feed_forward.gate_proj.weight": (
        Place("feed_forward.mlp.fc1_weight", 0, (0, 1, 2)),
        Place("feed_forward.w1.weight", 0),
    ),
    "feed_forward.up_proj.weight": (
        Place("feed_forward.mlp.fc1_weight", 0, (1, 2, 2)),
        Place("feed_forward.w3.weight", 0),
    ),
    "feed_forward.down_proj.weight": (
        Place("feed_forward.mlp.fc2_weight", 1),
        Place("feed_forward.w2.weight", 1),
    ),
    "feed_forward.router.weight": (Place("feed_forward.router_DE", form="transposed"),),
    "feed_forward.experts.gate_proj.weight": (
        Place("feed_forward.experts.moe_w_in_eD_F", 1, form="experts"),
        Place("feed_forward.experts.w1", 1, form="experts"),
    ),
    "feed_forward.experts.up_proj.weight": (
        Place("feed_forward.experts.moe_w_swiglu_eD_F", 1, form="experts"),
        Place("feed_forward.experts.w3", 1, form="experts"),
    ),
    "feed_forward.experts.down_proj.weight": (
        Place("feed_forward.experts.moe_w_out_eF_D", 2, form="experts"),
        Place("feed_forward.experts.w2", 2, form="experts"),
    ),
    "feed_forward.shared_expert.gate_proj.weight": (
        Place("feed_forward.w_in_shared_FD.weight", 0),
        Place("feed_forward.shared_expert.w1.weight", 0),
    ),
    "feed_forward.shared_expert.up_proj.weight": (
        Place("feed_forward.w_swiglu_FD.weight", 0),
        Place("feed_forward.shared_expert.w3.weight", 0),
    ),
    "feed_forward.shared_expert.down_proj.weight": (
        Place("feed_forward.w_out_shared_DF.weight", 1),
        Place("feed_forward.shared_expert.w2.weight", 1),
    ),
}

VISION_LAYER = {
    "input_layernorm.weight": Place("ln_1.weight"),
    "input_layernorm.bias": Place("ln_1.bias"),
    "self_attn.q_proj.weight": Place("attn.wq.weight", 0),
    "self_attn.q_proj.bias": Place("attn.wq.bias", 0),
    "self_attn.k_proj.weight": Place("attn.wk.weight", 0),
    "self_attn.k_proj.bias": Place("attn.wk.bias", 0),
    "self_attn.v_proj.weight": Place("attn.wv.weight", 0),
    "self_attn.v_proj.bias": Place("attn.wv.bias", 0),
    "self_attn.o_proj.weight": Place("attn.wo.weight", 1),
    "self_attn.o_proj.bias": Place("attn.wo.bias"),
    "post_attention_layernorm.weight": Place("ln_2.weight"),
    "post_attention_layernorm.bias": Place("ln_2.bias"),
    "mlp.fc1.weight": Place("mlp.c_fc.weight", 0),
    "mlp.fc1.bias": Place("mlp.c_fc.bias", 0),
    "mlp.fc2.weight": Place("mlp.c_proj.weight", 1),
    "mlp.fc2.bias": Place("mlp.c_proj.bias"),
}

ENCODER, ADAPTER = "vision_embeddings.vision_encoder", "vision_embeddings.vision_adapter"
OUTSIDE_LAYERS = {
    "language_model.model.embed_tokens.weight": Place("tok_embeddings.weight", 0),
    "language_model.model.norm.weight": Place("norm.weight"),
    "language_model.lm_head.weight": Place("output.weight", 0),
    "vision_model.patch_embedding.linear.weight": Place(f"{ENCODER}.conv1._linear.weight", 0),
    "vision_model.class_embedding": Place(f"{ENCODER}.class_embedding"),
    "vision_model.positional_embedding_vlm": Place(f"{ENCODER}.positional_embedding_vlm"),
    "vision_model.layernorm_pre.weight": Place(f"{ENCODER}.ln_pre.weight"),
    "vision_model.layernorm_pre.bias": Place(f"{ENCODER}.ln_pre.bias"),
    "vision_model.layernorm_post.weight": Place(f"{ENCODER}.ln_post.weight"),
    "vision_model.layernorm_post.bias": Place(f"{ENCODER}.ln_post.bias"),
    "vision_model.vision_adapter.mlp.fc1.weight": Place(f"{ADAPTER}.mlp.c_fc.weight", 0),
    "vision_model.vision_adapter.mlp.fc2.weight": Place(f"{ADAPTER}.mlp.c_proj.weight", 1),
    "multi_modal_projector.linear_1.weight": Place("vision_projection.weight", 0),
}
