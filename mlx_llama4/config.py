"""Reads config.json into frozen dataclasses, and decides the kind of each layer, once.

It reads the spelling of the releases (`rope_scaling`, `image_token_index`) and that of
transformers 5 (`rope_parameters`). It knows nothing of weights. Defaults for absent keys are the
reference's (transformers, configuration_llama4.py); keys that determine shapes have no defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlx_llama4.errors import CheckpointError, ConfigError
from mlx_llama4.files.foreign import instead_of_weights
from mlx_llama4.files.json_file import Keys, read_json
from mlx_llama4.files.modelopt import with_modelopt
from mlx_llama4.quantization import ForeignQuantization, QuantizationConfig, parse_quantization

Attention = Literal["chunked", "global"]
FeedForward = Literal["moe", "dense"]
MOST_LAYERS = 1000
FULL_ATTENTION = "full_attention"  # in layer_types; the other is "chunked_attention"


@dataclass(frozen=True)
class LayerKind:
    """What a decoder layer is made of."""

    # "chunked" rotates queries and keys (RoPE) and sees only its own chunk; "global" uses no
    # positions (NoPE), sees everything, and tunes its temperature.
    attention: Attention
    feed_forward: FeedForward  # "moe": a router, routed experts and a shared one. "dense": one MLP


@dataclass(frozen=True)
class RopeScaling:
    """The llama3 rule: long wavelengths are slowed down by `factor`, short ones kept."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class TextConfig:
    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int  # width of one expert, routed or shared; 0 in dense models
    intermediate_size_mlp: int  # width of a dense layer's MLP
    num_local_experts: int  # 0: all layers are dense, and so is num_experts_per_tok
    num_experts_per_tok: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    max_position_embeddings: int
    attention_chunk_size: int | None  # None: RoPE layers see everything
    use_qk_norm: bool
    attention_bias: bool
    attn_temperature_tuning: bool
    floor_scale: int
    attn_scale: float
    layers: tuple[LayerKind, ...]

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)


@dataclass(frozen=True)
class VisionConfig:
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_channels: int
    image_size: int  # side of a tile in pixels
    patch_size: int  # side of a patch in pixels
    pixel_shuffle_ratio: float
    projector_input_dim: int
    projector_output_dim: int
    vision_output_dim: int
    rope_theta: float

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def tokens_per_tile(self) -> int:
        """Text positions that one tile takes: 144 for the releases."""
        return int(self.patches_per_side * self.pixel_shuffle_ratio) ** 2


@dataclass(frozen=True)
class Config:
    text: TextConfig
    vision: VisionConfig | None
    image_token_id: int | None  # <|patch|>: the slot that an image feature replaces
    quantization: QuantizationConfig | None
    foreign_quantization: ForeignQuantization | None
    tied_head: bool  # a head that is not stored is the embedding
    model_type: str
    dtype: str | None  # as written: "bfloat16", "float16", "float32"


@dataclass(frozen=True)
class GenerationConfig:
    """Sampling defaults and end tokens of generation_config.json."""

    eos_token_ids: tuple[int, ...]
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off


def read_config(folder: str | Path) -> dict[str, Any]:
    """The raw config.json of a model folder. Each way it can be absent has an error of its own."""
    folder = Path(folder)
    try:
        if not folder.exists():
            raise CheckpointError(f"{folder} does not exist; give the path of a model folder")
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is a file; give the folder that holds config.json")
        has_config = (folder / "config.json").is_file()
    except OSError as failure:
        raise CheckpointError(f"cannot read {folder}: {failure.strerror}") from None
    if not has_config and (folder / "params.json").is_file():
        raise CheckpointError(
            f"{folder} is in Meta's layout and not converted yet; "
            f"run: mlx-llama4 convert {folder} OUTPUT_FOLDER"
        )
    if not has_config:
        raise CheckpointError(
            instead_of_weights(folder)
            or f"{folder} has no config.json, so it is not a model folder; "
            "give the folder with config.json, tokenizer.json and *.safetensors"
        )
    return with_modelopt(read_json(folder / "config.json"), folder)


def load_config(folder: str | Path) -> Config:
    """Config of a model folder.

    Raises CheckpointError if the folder or its config.json is missing, ConfigError for anything
    else.
    """
    raw = read_config(folder)
    try:
        return parse_config(raw)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None


def load_generation_config(
    folder: str | Path, config: Mapping[str, Any] | None = None
) -> GenerationConfig:
    """Sampling defaults and end tokens, from generation_config.json and config.json.

    config: the raw config.json, if it has been read already.
    """
    path = Path(folder) / "generation_config.json"
    raw = read_json(path) if path.is_file() else {}
    eos = raw.get("eos_token_id")
    if eos is None:
        config = read_config(folder) if config is None else config
        text = config.get("text_config", config)
        eos = text.get("eos_token_id") if isinstance(text, Mapping) else None
    eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(isinstance(token, int) for token in eos):
        raise ConfigError(f"{folder}: eos_token_id must be one token id or several, not {eos!r}")
    keys = Keys(raw, "generation_config.json")
    return GenerationConfig(
        eos_token_ids=tuple(eos),
        do_sample=bool(raw.get("do_sample", False)),
        temperature=keys.number("temperature", 1.0),
        top_p=keys.number("top_p", 1.0),
        top_k=max(keys.integer("top_k", 0, least=-1), 0),  # some write -1 for "off"
    )


def parse_config(raw: Mapping[str, Any]) -> Config:
    """Config from the contents of config.json. Raises ConfigError naming the key."""
    model_type = raw.get("model_type")
    if model_type not in ("llama4", "llama4_text"):
        raise ConfigError(
            f"config.json says model_type {model_type!r}; only Llama 4 runs here "
            "('llama4' or 'llama4_text')"
        )
    text_raw = raw.get("text_config", {} if model_type == "llama4" else raw)
    vision_raw = raw.get("vision_config")
    for name, part in (("text_config", text_raw), ("vision_config", vision_raw or {})):
        if not isinstance(part, Mapping):
            raise ConfigError(f"config.json: {name} must be an object, not {part!r}")
    image_token_id = _first(raw, "image_token_index", "image_token_id")
    if vision_raw and not isinstance(image_token_id, int):
        raise ConfigError(f"config.json: image_token_index is {image_token_id!r}, not a number")
    native, foreign = parse_quantization(raw, text_raw)
    return Config(
        text=_text_config(text_raw),
        vision=_vision_config(vision_raw) if vision_raw else None,
        image_token_id=image_token_id,
        quantization=native,
        foreign_quantization=foreign,
        tied_head=bool(raw.get("tie_word_embeddings") or text_raw.get("tie_word_embeddings")),
        model_type=model_type,
        dtype=_first(raw, "dtype", "torch_dtype") or _first(text_raw, "dtype", "torch_dtype"),
    )


def _first(raw: Mapping[str, Any], *keys: str) -> Any:
    return next((raw[key] for key in keys if raw.get(key) is not None), None)


def _text_config(raw: Mapping[str, Any]) -> TextConfig:
    keys = Keys(raw, "config.json: text_config")
    keys.expect("hidden_act", "silu")
    hidden_size = keys.integer("hidden_size")
    heads = keys.integer("num_attention_heads")
    kv_heads = keys.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ConfigError(
            f"{keys.where}: {heads} attention heads cannot share {kv_heads} key/value heads"
        )
    head_dim = keys.integer("head_dim", hidden_size // heads)
    if head_dim % 2:
        raise ConfigError(f"{keys.where}: head_dim {head_dim} is odd; RoPE turns pairs")
    layers = _layer_kinds(raw, keys)
    experts, experts_per_token = _expert_counts(keys, layers)
    context = keys.integer("max_position_embeddings", 131_072)
    theta, scaling = _rope(raw, keys, default_theta=500_000.0)
    return TextConfig(
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=keys.integer("intermediate_size") if experts else 0,
        intermediate_size_mlp=keys.integer("intermediate_size_mlp", 16384),
        num_local_experts=experts,
        num_experts_per_tok=experts_per_token,
        rms_norm_eps=keys.positive("rms_norm_eps", 1e-5),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position_embeddings=context,
        attention_chunk_size=_chunk_size(raw, keys, layers, context),
        use_qk_norm=bool(raw.get("use_qk_norm", True)),
        attention_bias=bool(raw.get("attention_bias", False)),
        # The releases write 4, transformers 5 writes true; both mean on.
        attn_temperature_tuning=bool(raw.get("attn_temperature_tuning", True)),
        floor_scale=keys.integer("floor_scale", 8192),
        attn_scale=keys.number("attn_scale", 0.1),
        layers=layers,
    )


def _layer_kinds(raw: Mapping[str, Any], keys: Keys) -> tuple[LayerKind, ...]:
    count = keys.integer("num_hidden_layers")
    if count > MOST_LAYERS:  # or listing them would take for ever
        raise ConfigError(f"{keys.where}: num_hidden_layers is {count}, more than {MOST_LAYERS:,}")
    rope = raw.get("no_rope_layers")
    if not rope:  # absent, null or empty: the reference's rule
        interval = keys.integer("no_rope_layer_interval", 4)
        rope = [int((index + 1) % interval != 0) for index in range(count)]
    if not isinstance(rope, list) or len(rope) < count or any(use not in (0, 1) for use in rope):
        raise ConfigError(
            f"{keys.where}: no_rope_layers must list 1 (RoPE) or 0 (NoPE) for each of the "
            f"{count} layers, not {rope!r}"
        )
    attention: list[Attention] = ["chunked" if use else "global" for use in rope[:count]]

    types = raw.get("layer_types")
    if types and not (isinstance(types, list) and all(isinstance(name, str) for name in types)):
        raise ConfigError(
            f"{keys.where}: layer_types must list a name for each layer, not {types!r}"
        )
    # RoPE layers are all chunked or all full; layers without positions are full.
    chunked = ["chunked_attention" if use else FULL_ATTENTION for use in rope[:count]]
    if types and types[:count] not in (chunked, [FULL_ATTENTION] * count):
        raise ConfigError(
            f"{keys.where}: layer_types and no_rope_layers disagree; RoPE layers must be "
            "chunked_attention, or all layers full_attention, and NoPE layers full_attention"
        )

    moe = raw.get("moe_layers")
    if moe is None:
        step = keys.integer("interleave_moe_layer_step", 1, least=0)
        moe = range(step - 1, count, step) if step and raw.get("num_local_experts") != 0 else ()
    elif not isinstance(moe, list) or not all(isinstance(index, int) for index in moe):
        raise ConfigError(f"{keys.where}: moe_layers must be a list of layer numbers, not {moe!r}")
    return tuple(
        LayerKind(kind, "moe" if index in moe else "dense") for index, kind in enumerate(attention)
    )


def _chunk_size(
    raw: Mapping[str, Any], keys: Keys, layers: tuple[LayerKind, ...], context: int
) -> int | None:
    """None where there are no chunks: an explicit null, a chunk as long as the context, or RoPE
    layers whose type is full attention (transformers, since 5.24).
    """
    if raw.get("attention_chunk_size", 0) is None:
        return None
    chunk = keys.integer("attention_chunk_size", 8192)  # absent: as in the releases
    typed = zip(raw.get("layer_types") or [], layers, strict=False)
    full = any(name == FULL_ATTENTION and kind.attention == "chunked" for name, kind in typed)
    return None if full or chunk >= context else chunk


def _expert_counts(keys: Keys, layers: tuple[LayerKind, ...]) -> tuple[int, int]:
    """num_local_experts and num_experts_per_tok; both 0 for a dense model, whatever it says."""
    if all(kind.feed_forward == "dense" for kind in layers):
        return 0, 0
    experts = keys.integer("num_local_experts")
    experts_per_token = keys.integer("num_experts_per_tok", 1)
    if experts_per_token > experts:
        raise ConfigError(
            f"{keys.where}: num_experts_per_tok {experts_per_token} exceeds the {experts} experts"
        )
    return experts, experts_per_token


def _rope(
    raw: Mapping[str, Any], keys: Keys, default_theta: float
) -> tuple[float, RopeScaling | None]:
    """theta and scaling, from the releases' `rope_scaling` and `rope_theta` or transformers 5's
    `rope_parameters`. As in transformers, the older spelling wins if both are written.
    """
    name = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    parameters = raw.get(name) or {}
    where = f"{keys.where}: {name}"
    if not isinstance(parameters, Mapping):
        raise ConfigError(f"{where} must be an object, not {parameters!r}")
    if nested := [key for key, value in parameters.items() if isinstance(value, Mapping)]:
        raise ConfigError(
            f"{where} differ by layer type ({', '.join(nested)}), which no Llama 4 has"
        )
    rope = Keys(parameters, where)
    theta = rope.positive("rope_theta", Keys(raw, keys.where).positive("rope_theta", default_theta))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ConfigError(f"{where}: rope_type {kind!r} is not 'default' or 'llama3'")
    return theta, RopeScaling(
        factor=rope.positive("factor"),
        low_freq_factor=rope.positive("low_freq_factor"),
        high_freq_factor=rope.positive("high_freq_factor"),
        original_max_position_embeddings=rope.integer("original_max_position_embeddings"),
    )


def _vision_config(raw: Mapping[str, Any]) -> VisionConfig:
    keys = Keys(raw, "config.json: vision_config")
    keys.expect("hidden_act", "gelu")
    theta, _ = _rope(raw, keys, default_theta=10_000.0)
    vision = VisionConfig(
        hidden_size=keys.integer("hidden_size"),
        intermediate_size=keys.integer("intermediate_size"),
        num_hidden_layers=keys.integer("num_hidden_layers"),
        num_attention_heads=keys.integer("num_attention_heads"),
        num_channels=keys.integer("num_channels", 3),
        image_size=keys.integer("image_size"),
        patch_size=keys.integer("patch_size"),
        pixel_shuffle_ratio=keys.positive("pixel_shuffle_ratio", 0.5),
        projector_input_dim=keys.integer("projector_input_dim"),
        projector_output_dim=keys.integer("projector_output_dim"),
        vision_output_dim=keys.integer("vision_output_dim"),
        rope_theta=theta,
    )
    ratio = vision.pixel_shuffle_ratio
    shuffled_width = vision.hidden_size / ratio**2
    checks = {
        f"image_size {vision.image_size} is not a multiple of patch_size {vision.patch_size}": (
            vision.image_size % vision.patch_size == 0
        ),
        f"hidden_size {vision.hidden_size} does not split into "
        f"{vision.num_attention_heads} heads of whole 2-D pairs": (
            vision.hidden_size % (4 * vision.num_attention_heads) == 0
        ),
        f"{vision.patches_per_side} patches a side cannot be shuffled by {ratio}": (
            (vision.patches_per_side * ratio).is_integer()
        ),
        f"the adapter takes intermediate_size {vision.intermediate_size}, "
        f"but shuffled patches are {shuffled_width:g} wide": (
            shuffled_width == vision.intermediate_size
        ),
        "projector_input_dim, projector_output_dim and vision_output_dim differ": (
            vision.projector_input_dim == vision.projector_output_dim == vision.vision_output_dim
        ),
    }
    for problem, holds in checks.items():
        if not holds:
            raise ConfigError(f"{keys.where}: {problem}")
    return vision
