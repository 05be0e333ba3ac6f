"""Tiny checkpoints in Meta's layout, of the very weights that `tiny` writes in Hugging Face's.

What each rank holds is written down here after the reference's load hooks (llama-models,
models/llama4) and its models/checkpoint.py, independently of the reader.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.torch_files import BYTES_IO, write_torch_file

Weights = dict[str, np.ndarray]

VISION = "vision_embeddings.vision_encoder"
# (Hugging Face's name, Meta's, axis that the ranks divide); layers below.
OUTSIDE_LAYERS = [
    ("language_model.model.embed_tokens.weight", "tok_embeddings.weight", 0),
    ("language_model.model.norm.weight", "norm.weight", None),
    ("language_model.lm_head.weight", "output.weight", 0),
    ("multi_modal_projector.linear_1.weight", "vision_projection.weight", 0),
    ("vision_model.patch_embedding.linear.weight", f"{VISION}.conv1._linear.weight", 0),
    ("vision_model.class_embedding", f"{VISION}.class_embedding", None),
    ("vision_model.positional_embedding_vlm", f"{VISION}.positional_embedding_vlm", None),
    ("vision_model.layernorm_pre.weight", f"{VISION}.ln_pre.weight", None),
    ("vision_model.layernorm_pre.bias", f"{VISION}.ln_pre.bias", None),
    ("vision_model.layernorm_post.weight", f"{VISION}.ln_post.weight", None),
    ("vision_model.layernorm_post.bias", f"{VISION}.ln_post.bias", None),
    (
        "vision_model.vision_adapter.mlp.fc1.weight",
        "vision_embeddings.vision_adapter.mlp.c_fc.weight",
        0,
    ),
    (
        "vision_model.vision_adapter.mlp.fc2.weight",
        "vision_embeddings.vision_adapter.mlp.c_proj.weight",
        1,
    ),
]
VISION_LAYER = [
    ("input_layernorm.weight", "ln_1.weight", None),
    ("input_layernorm.bias", "ln_1.bias", None),
    ("post_attention_layernorm.weight", "ln_2.weight", None),
    ("post_attention_layernorm.bias", "ln_2.bias", None),
    ("self_attn.q_proj.weight", "attn.wq.weight", 0),
    ("self_attn.q_proj.bias", "attn.wq.bias", 0),
    ("self_attn.k_proj.weight", "attn.wk.weight", 0),
    ("self_attn.k_proj.bias", "attn.wk.bias", 0),
    ("self_attn.v_proj.weight", "attn.wv.weight", 0),
    ("self_attn.v_proj.bias", "attn.wv.bias", 0),
    ("self_attn.o_proj.weight", "attn.wo.weight", 1),
    ("self_attn.o_proj.bias", "attn.wo.bias", None),
    ("mlp.fc1.weight", "mlp.c_fc.weight", 0),
    ("mlp.fc1.bias", "mlp.c_fc.bias", 0),
    ("mlp.fc2.weight", "mlp.c_proj.weight", 1),
    ("mlp.fc2.bias", "mlp.c_proj.bias", None),
]


def params(config: dict[str, Any]) -> dict[str, Any]:
    """params.json for a config of `tiny`; widths come out as its 96 and 160."""
    text, vision = config["text_config"], config.get("vision_config")
    chunked = "layer_types" not in text  # in these tests, a list of full attention
    nope = 0 in text.get("no_rope_layers", [0])
    return {
        "dim": text["hidden_size"],
        "n_layers": text["num_hidden_layers"],
        "n_heads": text["num_attention_heads"],
        "n_kv_heads": text["num_key_value_heads"],
        "vocab_size": text["vocab_size"],
        "multiple_of": 32,
        "ffn_dim_multiplier": 0.9,
        "ffn_exp": 4.0,
        "norm_eps": text["rms_norm_eps"],
        "attention_chunk_size": text["attention_chunk_size"] if chunked else None,
        "rope_theta": text["rope_theta"],
        "use_scaled_rope": text["rope_scaling"] is not None,
        "nope_layer_interval": 4 if nope else None,
        "use_qk_norm": text["use_qk_norm"],
        "attn_temperature_tuning": text["attn_temperature_tuning"],
        "floor_scale": float(text["floor_scale"]),
        "attn_scale": text["attn_scale"],
        "moe_args": {
            "num_experts": text["num_local_experts"],
            "capacity_factor": 1.0,
            "auto_scale_F": True,
            "use_shared_expert": True,
            "use_token_choice": True,
            "top_k": text["num_experts_per_tok"],
            "interleave_moe_layer_step": text["interleave_moe_layer_step"],
        }
        if text["num_local_experts"]
        else None,
        "vision_args": {
            "image_size": {"height": vision["image_size"], "width": vision["image_size"]},
            "patch_size": {"height": vision["patch_size"], "width": vision["patch_size"]},
            "dim": vision["hidden_size"],
            "n_layers": vision["num_hidden_layers"],
            "n_heads": vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            "output_dim": vision["vision_output_dim"],
            "pixel_shuffle_ratio": vision["pixel_shuffle_ratio"],
        }
        if vision
        else None,
        "quantization_args": None,
        "lora_args": None,
    }


def write_checkpoint(
    folder: Path,
    config: dict[str, Any],
    weights: Weights,
    ranks: int,
    dtype: str = "F32",
    fused: bool = True,
) -> Path:
    """fused: as the releases have them; else by the names of the reference's own modules."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params(config)))
    for index, rank in enumerate(split(config, weights, ranks, fused)):
        extra = {f"layers.0.attention.{name}._extra_state": BYTES_IO for name in ("wqkv", "wo")}
        write_torch_file(folder / f"consolidated.{index:02}.pth", rank, dtype, extra)
    return folder


def split(
    config: dict[str, Any], weights: Weights, ranks: int, fused: bool = True
) -> list[Weights]:
    """What each rank holds, beside what the reference ignores."""
    return [
        _outside_layers(weights, ranks, rank)
        | _vision_layers(config, weights, ranks, rank)
        | _text_layers(config, weights, ranks, rank, fused)
        | {"rope.freqs": np.ones(8, np.float32)}
        for rank in range(ranks)
    ]


def _cut(array: np.ndarray, axis: int | None, ranks: int, rank: int) -> np.ndarray:
    return array if axis is None else np.split(array, ranks, axis)[rank]


def _outside_layers(weights: Weights, ranks: int, rank: int) -> Weights:
    return {
        meta: _cut(weights[name], axis, ranks, rank)
        for name, meta, axis in OUTSIDE_LAYERS
        if name in weights
    }


def _vision_layers(config: dict[str, Any], weights: Weights, ranks: int, rank: int) -> Weights:
    count = (config.get("vision_config") or {}).get("num_hidden_layers", 0)
    return {
        f"{VISION}.transformer.resblocks.{index}.{meta}": _cut(
            weights[f"vision_model.model.layers.{index}.{name}"], axis, ranks, rank
        )
        for index in range(count)
        for name, meta, axis in VISION_LAYER
    }


def _text_layers(
    config: dict[str, Any], weights: Weights, ranks: int, rank: int, fused: bool
) -> Weights:
    found: Weights = {}
    for index in range(config["text_config"]["num_hidden_layers"]):
        prefix = f"language_model.model.layers.{index}."
        layer = {
            name.removeprefix(prefix): weight
            for name, weight in weights.items()
            if name.startswith(prefix)
        }
        is_moe = "feed_forward.router.weight" in layer
        parts = _attention(layer, ranks, rank, fused)
        parts |= (_moe if is_moe else _dense)(layer, ranks, rank, fused)
        found |= {f"layers.{index}.{name}": weight for name, weight in parts.items()}
    return found


def _attention(layer: Weights, ranks: int, rank: int, fused: bool) -> Weights:
    queries, keys, values = (
        _cut(layer[f"self_attn.{name}_proj.weight"], 0, ranks, rank) for name in "qkv"
    )
    found = {"attention.wo.weight": _cut(layer["self_attn.o_proj.weight"], 1, ranks, rank)}
    norm = layer["input_layernorm.weight"]
    if fused:
        return found | {
            "attention.wqkv.weight": np.concatenate([queries, keys, values]),
            "attention.wqkv.layer_norm_weight": norm,
        }
    return found | {
        "attention.wq.weight": queries,
        "attention.wk.weight": keys,
        "attention.wv.weight": values,
        "attention_norm.weight": norm,
    }


def _dense(layer: Weights, ranks: int, rank: int, fused: bool) -> Weights:
    gate, up, down = (
        _cut(layer[f"feed_forward.{name}_proj.weight"], axis, ranks, rank)
        for name, axis in (("gate", 0), ("up", 0), ("down", 1))
    )
    norm = layer["post_attention_layernorm.weight"]
    if fused:
        return {
            "feed_forward.mlp.fc1_weight": np.concatenate([gate, up]),
            "feed_forward.mlp.fc2_weight": down,
            "feed_forward.mlp.layer_norm_weight": norm,
        }
    return {
        "feed_forward.w1.weight": gate,
        "feed_forward.w3.weight": up,
        "feed_forward.w2.weight": down,
        "ffn_norm.weight": norm,
    }


def _moe(layer: Weights, ranks: int, rank: int, fused: bool) -> Weights:
    names = {
        "gate": ("experts.moe_w_in_eD_F", "w_in_shared_FD", "1"),
        "up": ("experts.moe_w_swiglu_eD_F", "w_swiglu_FD", "3"),
        "down": ("experts.moe_w_out_eF_D", "w_out_shared_DF", "2"),
    }
    # [experts, in, out]; an expert's own width, F, is out for gate and up, in for down.
    gate, up = np.split(layer["feed_forward.experts.gate_up_proj"], 2, axis=2)
    stacked = {"gate": gate, "up": up, "down": layer["feed_forward.experts.down_proj"]}
    found = {"feed_forward.router_DE": layer["feed_forward.router.weight"].T}
    for name, (experts, shared, number) in names.items():
        part = _cut(stacked[name], 1 if name == "down" else 2, ranks, rank)
        weight = layer[f"feed_forward.shared_expert.{name}_proj.weight"]
        weight = _cut(weight, 1 if name == "down" else 0, ranks, rank)
        if fused:
            found[f"feed_forward.{experts}"] = part.reshape(-1, part.shape[-1])
            found[f"feed_forward.{shared}.weight"] = weight
        else:
            found[f"feed_forward.experts.w{number}"] = part
            found[f"feed_forward.shared_expert.w{number}.weight"] = weight
    if fused:
        found["feed_forward.running_gate_stats_3E"] = np.zeros((3, 4), np.float32)
    norm = "feed_forward.norm.weight" if fused else "ffn_norm.weight"
    return found | {norm: layer["post_attention_layernorm.weight"]}
