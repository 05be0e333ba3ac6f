"""Translates Meta's params.json to config.json in Hugging Face's spelling.

Widths follow from dim by the rules of the reference (llama-models, models/llama4/args.py,
model.py, moe.py); defaults for absent keys are the reference's too. It ignores unknown keys, and so
do we.
"""

from collections.abc import Mapping
from typing import Any

from mlx_llama4.config import Config, VisionConfig
from mlx_llama4.errors import ConfigError
from mlx_llama4.files.json_file import Keys

# The releases' tokenizer: 200,000 byte strings, then the special tokens.
BEGIN_OF_TEXT, END_OF_TEXT = 200000, 200001
END_OF_MESSAGE, END_OF_TURN, PAD = 200007, 200008, 200018
IMAGE_START, IMAGE_END, PATCH = 200080, 200081, 200092
# The end tokens and sampling of the reference.
GENERATION_CONFIG: dict[str, Any] = {
    "bos_token_id": BEGIN_OF_TEXT,
    "do_sample": True,
    "eos_token_id": [END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN],
    "pad_token_id": PAD,
    "temperature": 0.6,
    "top_p": 0.9,
}
# The reference's constants for Scout's scaled RoPE, which released files do not state.
ROPE_FACTOR, ROPE_HIGH_FREQ_FACTOR = 16.0, 1.0
ROPE_LOW_FREQ_FACTOR, ROPE_ORIGINAL_CONTEXT = 1.0, 8192
# The file does not state the context. Only Scout has scaled RoPE.
SCOUT_CONTEXT, MAVERICK_CONTEXT = 10_485_760, 1_048_576
MAX_TILES = 16
BILINEAR = 2  # Pillow's number


def config_of(params: Mapping[str, Any], where: str, vocab_size: int) -> dict[str, Any]:
    """A raw config.json, as `parse_config` takes it.

    where: the file's name, for errors. vocab_size: for files that leave it out. Raises
    ConfigError for keys that are missing, of a wrong kind, or of an unsupported variant.
    """
    params = params.get("model", params)
    if not isinstance(params, Mapping):
        raise ConfigError(f"{where}: model must be an object, not {params!r}")
    _refuse_variants(params, where)
    try:
        text = _text(params, where, vocab_size)
        vision = _object(params, "vision_args", where)
        config = {
            "architectures": ["Llama4ForConditionalGeneration"],
            "model_type": "llama4",
            "text_config": text,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }
        if vision is None:
            return config
        return config | {
            "boi_token_index": IMAGE_START,
            "eoi_token_index": IMAGE_END,
            "image_token_index": PATCH,
            "vision_config": _vision(vision, f"{where}: vision_args"),
        }
    except OverflowError:
        raise ConfigError(f"{where}: widths are larger than any model's") from None


def json_files(config: Config) -> dict[str, dict[str, Any]]:
    """Name → contents of the files beside config.json that Meta's folders lack."""
    files = {"generation_config.json": GENERATION_CONFIG}
    if config.vision is not None:
        files["processor_config.json"] = _processor_config(config.vision)
    return files


def _processor_config(vision: VisionConfig) -> dict[str, Any]:
    """How pictures become tiles, as transformers 5 spells it."""
    side = vision.image_size
    return {
        "fake_image_token": "<|image|>",
        "image_processor": {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "Llama4ImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "max_patches": MAX_TILES,
            "resample": BILINEAR,
            "rescale_factor": 1 / 255,
            "resize_to_max_canvas": False,
            "size": {"height": side, "width": side},
        },
        "image_token": "<|image|>",
        "patch_size": vision.patch_size,
        "processor_class": "Llama4Processor",
    }


def _refuse_variants(params: Mapping[str, Any], where: str) -> None:
    """Refuses options that change the model and that no release uses."""
    for key in ("quantization_args", "lora_args"):
        value = params.get(key)
        if isinstance(value, Mapping):
            value = [one for one in value.values() if one]
        if value:
            raise ConfigError(f"{where}: {key} are not supported; use the bfloat16 release")
    experts = _object(params, "moe_args", where) or {}  # none in dense models
    for key in ("use_shared_expert", "use_token_choice"):
        if not experts.get(key, True):
            raise ConfigError(f"{where}: moe_args: {key} is false, which is not supported")


def _object(raw: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any] | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {key} must be an object, not {value!r}")
    return value


def _text(params: Mapping[str, Any], where: str, vocab_size: int) -> dict[str, Any]:
    keys = Keys(params, where)
    experts = _experts(keys, params.get("moe_args"), f"{where}: moe_args")
    dim, heads, layers = (keys.integer(key) for key in ("dim", "n_heads", "n_layers"))
    head_dim = dim // heads
    if dim % heads or keys.integer("head_dim", head_dim) != head_dim:
        raise ConfigError(f"{where}: heads must be dim {dim} / n_heads {heads} wide")
    # -1 means the size of the tokenizer.
    if params.get("vocab_size") not in (None, -1):
        vocab_size = keys.integer("vocab_size")
    scaled = bool(params.get("use_scaled_rope"))
    chunk = params.get("attention_chunk_size") and keys.integer("attention_chunk_size")
    return {
        "model_type": "llama4_text",
        "attention_bias": False,
        "attention_chunk_size": chunk or None,
        "attn_scale": keys.number("attn_scale", 0.1),
        "attn_temperature_tuning": bool(params.get("attn_temperature_tuning", False)),
        "bos_token_id": BEGIN_OF_TEXT,
        "eos_token_id": GENERATION_CONFIG["eos_token_id"],
        "floor_scale": keys.integer("floor_scale", 8192),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": dim,
        "intermediate_size_mlp": _dense_width(keys),
        "max_position_embeddings": SCOUT_CONTEXT if scaled else MAVERICK_CONTEXT,
        # Absent: all layers have positions, as with an interval longer than the model.
        "no_rope_layer_interval": keys.integer("nope_layer_interval", layers + 1),
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": keys.integer("n_kv_heads", heads),
        "pad_token_id": PAD,
        "rms_norm_eps": keys.positive("norm_eps", 1e-5),
        "rope_scaling": _rope_scaling(keys) if scaled else None,
        "rope_theta": keys.positive("rope_theta", 500_000.0),
        "use_qk_norm": bool(params.get("use_qk_norm", False)),
        "vocab_size": vocab_size,
    } | experts


def _experts(keys: Keys, raw: Mapping[str, Any] | None, where: str) -> dict[str, Any]:
    """What config.json says of experts: all layers are dense without moe_args, or where it counts
    none (the reference's own default is -1).
    """
    experts = Keys(raw or {"num_experts": 0}, where)
    if experts.integer("num_experts", least=-1) < 1:
        # No layer uses the width, but readers of config.json want one.
        width = _dense_width(keys)
        return {"num_local_experts": 0, "moe_layers": [], "intermediate_size": width}
    return {
        "interleave_moe_layer_step": experts.integer("interleave_moe_layer_step", 1),
        "intermediate_size": _expert_width(keys, experts),
        "num_experts_per_tok": experts.integer("top_k", 1),
        "num_local_experts": experts.integer("num_experts"),
    }


def _dense_width(keys: Keys) -> int:
    width = int(2 * (4 * keys.integer("dim")) / 3)
    return _rounded_up(int(keys.positive("ffn_dim_multiplier", 1.0) * width), keys)


def _expert_width(keys: Keys, experts: Keys) -> int:
    """Width of an expert, routed or shared; the two together are as wide as a dense layer."""
    width = int(2 * int(keys.positive("ffn_exp", 4.0) * keys.integer("dim")) / 3)
    width = int(keys.positive("ffn_dim_multiplier", 1.0) * width)
    if experts.raw.get("auto_scale_F", True):
        width = int(width / (experts.number("capacity_factor", 1.0) + 1))
    return _rounded_up(width, keys)


def _rounded_up(width: int, keys: Keys) -> int:
    multiple = keys.integer("multiple_of", 256)
    return -(-width // multiple) * multiple


def _rope_scaling(keys: Keys) -> dict[str, Any]:
    return {
        "factor": keys.positive("rope_scaling_factor", ROPE_FACTOR),
        "high_freq_factor": keys.positive("rope_high_freq_factor", ROPE_HIGH_FREQ_FACTOR),
        "low_freq_factor": ROPE_LOW_FREQ_FACTOR,
        "original_max_position_embeddings": ROPE_ORIGINAL_CONTEXT,
        "rope_type": "llama3",
    }


def _vision(vision: Mapping[str, Any], where: str) -> dict[str, Any]:
    keys = Keys(vision, where)
    width = keys.integer("output_dim")
    return {
        "model_type": "llama4_vision_model",
        "hidden_act": "gelu",
        "hidden_size": keys.integer("dim"),
        "image_size": _side(vision, "image_size", where),
        "intermediate_size": int(keys.positive("mlp_ratio") * keys.integer("dim")),
        "num_attention_heads": keys.integer("n_heads"),
        "num_channels": 3,
        "num_hidden_layers": keys.integer("n_layers"),
        "patch_size": _side(vision, "patch_size", where),
        "pixel_shuffle_ratio": keys.positive("pixel_shuffle_ratio"),
        "projector_input_dim": width,
        "projector_output_dim": width,
        "rope_theta": 10000,
        "vision_output_dim": width,
    }


def _side(vision: Mapping[str, Any], key: str, where: str) -> int:
    size = Keys(_object(vision, key, where) or {}, f"{where}: {key}")
    height, width = size.integer("height"), size.integer("width")
    if height != width:
        raise ConfigError(f"{where}: {key} is {height} x {width}; only squares are supported")
    return height
