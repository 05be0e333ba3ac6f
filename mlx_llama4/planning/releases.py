"""The family's published sizes, for planning without a folder.

Scout's and Maverick's are from their config.json as released, as far as it determines shapes and
limits. Llama Guard 4's follow from its model card (github.com/meta-llama/PurpleLlama): Scout's
layers, each with the shared expert alone; its context is what hosts of it state. For Behemoth,
Meta has published three figures and no weights (ai.meta.com, "The Llama 4 herd", April 2025).
"""

from dataclasses import dataclass
from typing import Any

from mlx_llama4.config import Config, parse_config
from mlx_llama4.hub.released import RELEASES as REPOSITORIES

_TEXT: dict[str, Any] = {
    "vocab_size": 202_048,
    "hidden_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16_384,
    "num_experts_per_tok": 1,
    "attention_chunk_size": 8192,
}
_VISION: dict[str, Any] = {
    "hidden_size": 1408,
    "intermediate_size": 5632,
    "num_hidden_layers": 34,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "pixel_shuffle_ratio": 0.5,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "vision_output_dim": 4096,
}
_SIZES: dict[str, dict[str, Any]] = {
    "scout": {
        "num_local_experts": 16,
        "interleave_moe_layer_step": 1,
        "max_position_embeddings": 10_485_760,
    },
    "maverick": {
        "num_local_experts": 128,
        "interleave_moe_layer_step": 2,
        "max_position_embeddings": 1_048_576,
        "use_qk_norm": False,
    },
    "guard": {
        "num_local_experts": 0,
        "moe_layers": [],
        "intermediate_size_mlp": 8192,
        "no_rope_layers": [1] * 48,
        "attention_chunk_size": None,
        "max_position_embeddings": 163_840,
    },
}
RELEASES = tuple(REPOSITORIES)
_KEYS = ("num_hidden_layers", "hidden_size", "num_local_experts")  # tell one from another


@dataclass(frozen=True)
class Announced:
    """A model for which only these figures are public."""

    name: str
    parameters: int  # approximately
    active_parameters: int
    experts: int


BEHEMOTH = Announced("Llama 4 Behemoth", 2 * 10**12, 288 * 10**9, 16)


def release_config(name: str) -> Config:
    """The config of one of `RELEASES`, in bfloat16, with its vision tower."""
    return parse_config(release_json(name))


def release_json(name: str) -> dict[str, Any]:
    """The same as in config.json."""
    return {
        "model_type": "llama4",
        "text_config": {"model_type": "llama4_text"} | _TEXT | _SIZES[name],
        "vision_config": dict(_VISION),
        "image_token_index": 200_092,
        "torch_dtype": "bfloat16",
    }


def title_of(config: Config) -> str | None:
    """The name, for people, of the release with this shape; None if there is none."""
    sizes = [getattr(config.text, key) for key in _KEYS]
    for name, release in REPOSITORIES.items():
        if sizes == [(_TEXT | _SIZES[name])[key] for key in _KEYS]:
            return release.title
    return None
