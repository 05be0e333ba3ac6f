"""Writes config.json of an MLX folder so that transformers, mlx-lm and mlx-vlm can read it."""

import copy
from collections import Counter
from dataclasses import asdict
from typing import Any

from mlx_llama4.config import FULL_ATTENTION, Config, TextConfig, VisionConfig
from mlx_llama4.convert.plan import Plan
from mlx_llama4.quantization import Quantization


def mlx_config(raw: dict[str, Any], config: Config, plan: Plan) -> dict[str, Any]:
    """The source's config.json, `raw`, completed for the MLX folder.

    It gets both spellings of RoPE, every key that the peers require, and the `quantization` table.
    Other keys stay as they are.
    """
    result = copy.deepcopy(raw)
    if config.model_type == "llama4_text":
        # Peers know the text tower only as part of a multimodal model.
        result = {"text_config": result}
    for key in ("quantization", "quantization_config"):
        result.pop(key, None)
        result.get("text_config", {}).pop(key, None)
    result.update(model_type="llama4", tie_word_embeddings=False)
    result.setdefault("architectures", ["Llama4ForConditionalGeneration"])
    for key in ("torch_dtype", "dtype"):
        result[key] = plan.recipe.dtype
    result["text_config"] = _text(result["text_config"], config.text)
    if config.vision is None:
        result.pop("vision_config", None)
    else:
        result["vision_config"] = _vision(result["vision_config"], config.vision)
        result["image_token_index"] = result["image_token_id"] = config.image_token_id
    if table := _quantization(plan):
        # mlx-lm reads the first, transformers and older readers look for the second.
        result["quantization"] = result["quantization_config"] = table
    return result


def _text(raw: dict[str, Any], text: TextConfig) -> dict[str, Any]:
    scaling = None
    if text.rope_scaling is not None:
        scaling = {
            "factor": text.rope_scaling.factor,
            "high_freq_factor": text.rope_scaling.high_freq_factor,
            "low_freq_factor": text.rope_scaling.low_freq_factor,
            "original_max_position_embeddings": (
                text.rope_scaling.original_max_position_embeddings
            ),
            "rope_type": "llama3",
        }
    # A tied head is written as a tensor of its own: peers' Llama 4 always has one.
    untied = {"tie_word_embeddings": False} if "tie_word_embeddings" in raw else {}
    layer_types = {"layer_types": _layer_types(text)} if "layer_types" in raw else {}
    return (
        raw
        | untied
        | layer_types
        | {
            "model_type": "llama4_text",
            "attention_bias": text.attention_bias,
            # Peers do not know null; a chunk as long as the context means the same.
            "attention_chunk_size": text.attention_chunk_size or text.max_position_embeddings,
            "attn_scale": text.attn_scale,
            "attn_temperature_tuning": text.attn_temperature_tuning,
            "floor_scale": text.floor_scale,
            "head_dim": text.head_dim,
            "interleave_moe_layer_step": _moe_step(text),
            "intermediate_size_mlp": text.intermediate_size_mlp,
            "max_position_embeddings": text.max_position_embeddings,
            "moe_layers": _moe_layers(text),
            "no_rope_layers": [int(kind.attention == "chunked") for kind in text.layers],
            "num_experts_per_tok": text.num_experts_per_tok,
            "num_key_value_heads": text.num_key_value_heads,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": text.rope_theta,
            "rope_scaling": scaling,
            "rope_parameters": {
                "rope_theta": text.rope_theta,
                **(scaling or {"rope_type": "default"}),
            },
            "use_qk_norm": text.use_qk_norm,
        }
    )


def _layer_types(text: TextConfig) -> list[str]:
    """As peers and older readers want them, whether or not the source has chunks."""
    named = {"chunked": "chunked_attention", "global": FULL_ATTENTION}
    return [named[kind.attention] for kind in text.layers]


def _moe_layers(text: TextConfig) -> list[int]:
    return [index for index, kind in enumerate(text.layers) if kind.feed_forward == "moe"]


def _moe_step(text: TextConfig) -> int:
    """The step by which peers find the MoE layers; past the last layer if there are none.

    A single step cannot describe irregular layers; peers then refuse the weights.
    """
    moe_layers = _moe_layers(text)
    return moe_layers[0] + 1 if moe_layers else text.num_hidden_layers + 1


def _vision(raw: dict[str, Any], vision: VisionConfig) -> dict[str, Any]:
    # mlx-vlm requires these, though nothing depends on their values.
    required = {
        "initializer_range": 0.02,
        "norm_eps": 1e-5,
        "projector_dropout": 0.0,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }
    return (
        required
        | raw
        | {
            "model_type": "llama4_vision_model",
            "num_channels": vision.num_channels,
            "rope_theta": vision.rope_theta,
            "rope_parameters": {"rope_theta": vision.rope_theta, "rope_type": "default"},
        }
    )


def _quantization(plan: Plan) -> dict[str, Any] | None:
    """The packing of most parameters, and the modules that differ; `false`: not packed."""
    sizes: Counter[Quantization] = Counter()
    for name, packing in plan.packings.items():
        if packing is not None:
            sizes[packing] += plan.specs[name].size
    if not sizes:
        return None
    default = sizes.most_common(1)[0][0]
    table: dict[str, Any] = asdict(default)
    for name, packing in plan.packings.items():
        if name.endswith(".weight") and len(plan.specs[name].shape) > 1 and packing != default:
            table[name.removesuffix(".weight")] = False if packing is None else asdict(packing)
    return table
