"""Make tiny random Llama 4 models in Hugging Face's layout, identical on every machine.

This needs only numpy, and nothing of the code under test: the reference values come from a model
with the very same weights (tests/golden/README.md). The weights are drawn from numpy's frozen
RandomState and are exact in bfloat16, so float32 and bfloat16 checkpoints are the same model.
"""

import hashlib
import math
import zlib
from typing import Any

import numpy as np

VOCABULARY = 320
PATCH_ID = 319
SIDE_PIXELS = 56  # of a tile
TOKENS_PER_TILE = 4
LAYERS = 8


def config(preset: str, **overrides: Any) -> dict[str, Any]:
    """Make config.json as in the releases. Overrides go to text_config; None removes nothing.

    "scout": experts in every layer, QK norm, scaled RoPE; "maverick": experts in every second
    layer, neither.
    """
    scout = preset == "scout"
    text = {
        "model_type": "llama4_text",
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "intermediate_size": 96,
        "intermediate_size_mlp": 160,
        "num_local_experts": 4 if scout else 8,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1 if scout else 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 16.0,
            "high_freq_factor": 1.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        }
        if scout
        else None,
        "use_qk_norm": scout,
        "attention_bias": False,
        "attention_chunk_size": 32,
        "attn_temperature_tuning": True,
        "attn_scale": 0.1,
        "floor_scale": 16,
        "max_position_embeddings": 10485760 if scout else 1048576,
        "bos_token_id": 300,
        "eos_token_id": [301, 302],
        "pad_token_id": 303,
    }
    text.update(overrides)
    vision = {
        "model_type": "llama4_vision_model",
        "hidden_act": "gelu",
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_channels": 3,
        "image_size": SIDE_PIXELS,
        "patch_size": 14,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": 48,
        "projector_output_dim": 48,
        "vision_output_dim": 48,
        "projector_dropout": 0.0,
        "attention_dropout": 0.0,
        "multi_modal_projector_bias": False,
        "norm_eps": 1e-5,
        "initializer_range": 0.02,
        "rope_theta": 10000,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "text_config": text,
        "vision_config": vision,
        "boi_token_index": 310,
        "eoi_token_index": 311,
        "image_token_index": PATCH_ID,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def tensors(config_: dict[str, Any], seed: int = 0, qk_gain: float = 1.0) -> dict[str, np.ndarray]:
    """Draw float32 weights by name, scaled so that logits have a standard deviation of about 2.

    qk_gain multiplies the query and key projections of the text tower; 0.003 makes queries so
    small that the epsilon of their norm matters.
    """
    shapes = text_shapes(config_.get("text_config", config_))
    if "text_config" in config_:
        shapes = {f"language_model.{name}": shape for name, shape in shapes.items()}
        if config_.get("vision_config"):
            shapes |= _vision_shapes(config_)
    return {name: _draw(name, shape, seed, qk_gain) for name, shape in shapes.items()}


def fingerprint(weights: dict[str, np.ndarray]) -> str:
    """A hash that tells, if goldens fail, whether the weights were the reference's at all."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(weights[name].tobytes())
    return digest.hexdigest()


def image_ids(grids: list[tuple[int, int]]) -> np.ndarray:
    """Ids [1, L] of a prompt with one image per (rows, columns) and some text around each."""
    ids = [300, 5, 6]
    for index, (rows, columns) in enumerate(grids):
        tile = [PATCH_ID] * TOKENS_PER_TILE
        ids.append(310)
        if rows * columns > 1:
            ids += [*([*tile, 314] * columns)[:-1], 315] * rows
        ids += [316, *tile, 311, 20 + index, 40 + index, 7]
    return np.array([[*ids, 8, 9, 10, 11]])


def pixels(grids: list[tuple[int, int]], seed: int = 0) -> np.ndarray:
    """Pixel values [n, 3, S, S] for such images: exact in bfloat16, smooth and noisy."""
    tiles = sum(rows * columns + (rows * columns > 1) for rows, columns in grids)
    random = np.random.RandomState(seed)
    shape = (tiles, 3, SIDE_PIXELS, SIDE_PIXELS)
    ramp = np.linspace(-0.5, 0.5, SIDE_PIXELS, dtype=np.float32)
    return to_bfloat16((ramp + random.uniform(-0.5, 0.5, shape)).astype(np.float32))


def text_ids(length: int, seed: int) -> np.ndarray:
    """Ids [1, length] of ordinary tokens."""
    return np.random.RandomState(seed).randint(0, 300, (1, length))


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Round to the nearest bfloat16, ties away from zero (which does not matter here)."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def _draw(name: str, shape: tuple[int, ...], seed: int, qk_gain: float) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
    fan_in = shape[-1] if len(shape) == 2 else shape[1] if len(shape) == 3 else 1
    is_text = "vision" not in name
    if name.endswith("bias"):
        mean, deviation = 0.0, 0.1
    elif "norm" in name:
        mean, deviation = 1.0, 0.1
    elif "embed_tokens" in name:
        mean, deviation = 0.0, 1.0
    elif "class_embedding" in name or "positional" in name:
        mean, deviation = 0.0, 0.5
    else:
        gain = 1.0
        if is_text and ("q_proj" in name or "k_proj" in name):
            gain = 1.3 * qk_gain
        elif "router" in name or "lm_head" in name:
            gain = 2.0
        elif "o_proj" in name or "down_proj" in name:
            gain = 2.4 / math.sqrt(LAYERS)
        elif "multi_modal_projector" in name:
            gain = 2.5
        elif "vision_adapter" in name:
            gain = 1.7
        mean, deviation = 0.0, gain / math.sqrt(fan_in)
    return to_bfloat16((random.standard_normal(shape) * deviation + mean).astype(np.float32))


def text_shapes(text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of a text tower's tensors, by name."""
    hidden, width = text["hidden_size"], text["intermediate_size"]
    queries = text["num_attention_heads"] * text["head_dim"]
    keys = text["num_key_value_heads"] * text["head_dim"]
    experts = text["num_local_experts"]
    step, moe = text["interleave_moe_layer_step"], text.get("moe_layers")
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (text["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (text["vocab_size"], hidden),
    }
    for index in range(text["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        for name, out, into in (
            ("q_proj", queries, hidden),
            ("k_proj", keys, hidden),
            ("v_proj", keys, hidden),
            ("o_proj", hidden, queries),
        ):
            shapes[f"{layer}.self_attn.{name}.weight"] = (out, into)
            if text["attention_bias"]:
                shapes[f"{layer}.self_attn.{name}.bias"] = (out,)
        forward = f"{layer}.feed_forward"
        if index in moe if moe is not None else index % step == step - 1:
            shapes[f"{forward}.router.weight"] = (experts, hidden)
            shapes[f"{forward}.experts.gate_up_proj"] = (experts, hidden, 2 * width)
            shapes[f"{forward}.experts.down_proj"] = (experts, width, hidden)
            shapes |= _mlp(f"{forward}.shared_expert", hidden, width)
        else:
            shapes |= _mlp(forward, hidden, text["intermediate_size_mlp"])
    return shapes


def _mlp(prefix: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate_proj.weight": (width, hidden),
        f"{prefix}.up_proj.weight": (width, hidden),
        f"{prefix}.down_proj.weight": (hidden, width),
    }


def _vision_shapes(config_: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    vision = config_["vision_config"]
    hidden, width = vision["hidden_size"], vision["intermediate_size"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    projected = vision["projector_output_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.class_embedding": (hidden,),
        "vision_model.positional_embedding_vlm": (patches + 1, hidden),
        "vision_model.patch_embedding.linear.weight": (hidden, 3 * vision["patch_size"] ** 2),
        "vision_model.vision_adapter.mlp.fc1.weight": (projected, width),
        "vision_model.vision_adapter.mlp.fc2.weight": (projected, projected),
        "multi_modal_projector.linear_1.weight": (config_["text_config"]["hidden_size"], projected),
    }
    norms = ["vision_model.layernorm_pre", "vision_model.layernorm_post"]
    linears = {}
    for index in range(vision["num_hidden_layers"]):
        layer = f"vision_model.model.layers.{index}"
        norms += [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linears[f"{layer}.self_attn.{name}"] = (hidden, hidden)
        linears[f"{layer}.mlp.fc1"] = (width, hidden)
        linears[f"{layer}.mlp.fc2"] = (hidden, width)
    for name in norms:
        shapes |= {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes
