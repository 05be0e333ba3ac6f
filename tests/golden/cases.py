"""What the goldens hold: models, and inputs for each. Read by make_goldens.py and by the tests."""

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlx_llama4.doctor.cases import ROPE_64
from tests import tiny


@dataclass(frozen=True)
class Model:
    """texts: lengths of prompts without images. images: grids (rows, columns) by case."""

    preset: str
    overrides: dict[str, Any] = field(default_factory=dict)
    qk_gain: float = 1.0
    texts: tuple[int, ...] = (60,)
    images: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    decode: bool = False
    tied: bool = False  # a text model by itself, whose head is its embedding and is not stored

    @property
    def config(self) -> dict[str, Any]:
        config = tiny.config(self.preset, **self.overrides)
        if self.tied:
            causal = {"architectures": ["Llama4ForCausalLM"], "tie_word_embeddings": True}
            return config["text_config"] | causal
        return config

    def weights(self) -> dict[str, np.ndarray]:
        weights = tiny.tensors(self.config, qk_gain=self.qk_gain)
        if self.tied:
            del weights["lm_head.weight"]
        return weights


IMAGES = {
    "one tile": [(1, 1)],
    "2x2": [(2, 2)],
    "1x3": [(1, 3)],
    "4x1": [(4, 1)],
    "16 tiles": [(4, 4)],
    "two images": [(1, 1), (1, 2)],
}

# As the reference's conversion writes a model without experts.
DENSE = {
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "interleave_moe_layer_step": 0,
    "moe_layers": [],
}

# Full attention in layers with positions, whatever the chunk size says. transformers 5.23 fails
# where that is null; the config's tests show that null means the same.
CHUNKLESS = {"layer_types": ["full_attention"] * tiny.LAYERS}

MODELS = {
    "scout": Model("scout", texts=(20, 150), images=IMAGES, decode=True),
    "maverick": Model("maverick", texts=(20, 150), images=IMAGES, decode=True),
    # Queries and keys so small that the epsilon of their norm shows.
    "small_qk": Model("scout", qk_gain=0.003, texts=(150,)),
    "strong_rope": Model("scout", {"rope_scaling": ROPE_64}, texts=(150,)),
    # A blend between slowed and kept frequencies, as in Llama 3.
    "blended_rope": Model(
        "scout", {"rope_scaling": ROPE_64 | {"high_freq_factor": 4.0}}, texts=(60,)
    ),
    "two_experts": Model("scout", {"num_experts_per_tok": 2}),
    "untuned": Model("scout", {"attn_temperature_tuning": False}),
    # One chunk for all: what attention_chunk_size null means.
    "one_chunk": Model("maverick", {"attention_chunk_size": 4096}, texts=(100,)),
    "odd_layers": Model(
        "maverick",
        {
            "num_hidden_layers": 5,
            "no_rope_layers": [1, 0, 1, 1, 0],
            "moe_layers": [1, 2, 4],
            "attention_bias": True,
        },
    ),
    # Llama Guard 4's shape: dense, positions in every layer, no chunks.
    "guard": Model(
        "maverick",
        DENSE
        | {
            "no_rope_layers": [1] * tiny.LAYERS,
            "attn_temperature_tuning": False,
            **CHUNKLESS,
        },
        images={name: IMAGES[name] for name in ("one tile", "2x2", "two images")},
    ),
    "tied": Model("scout", DENSE, texts=(60,), tied=True),
    "chunkless": Model("scout", CHUNKLESS),
    "one_expert": Model("maverick", {"num_local_experts": 1}),
}

# Models whose gradients the goldens hold. They are smaller than the others, because a gradient is
# as large as its model. GRADIENT_TOKENS cross two chunk borders.
NARROW = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "intermediate_size": 48,
    "intermediate_size_mlp": 80,
}
GRADIENTS = {
    "scout": Model("scout", NARROW, images={"1x2": [(1, 2)]}),
    "maverick": Model("maverick", NARROW),
    "two_experts": Model(
        "scout",
        NARROW | {"num_hidden_layers": 2, "no_rope_layers": [1, 0], "num_experts_per_tok": 2},
    ),
}
GRADIENT_TOKENS, GRADIENT_SEEDS = 80, (2, 3)


def gradient_ids() -> np.ndarray:
    """Ids [2, GRADIENT_TOKENS] that use every expert. No token's choice of an expert is nearly
    even, since a gradient jumps where the choice changes. make_gradients.py checks both.
    """
    return np.concatenate([tiny.text_ids(GRADIENT_TOKENS, seed) for seed in GRADIENT_SEEDS])


SAMPLES = 200  # of each tensor of the demo's gradient


def sampled_places(tensor: str, size: int) -> np.ndarray:
    """Where in a flattened tensor of the demo the golden has its gradient's values."""
    source = np.random.RandomState(zlib.crc32(tensor.encode()))
    return source.randint(0, size, SAMPLES)


PREFILLED = 100  # of the 150 tokens, in the case that then goes one by one
GREEDY_PROMPT, GREEDY_TOKENS = 45, 24


def text_ids(length: int) -> np.ndarray:
    return tiny.text_ids(length, seed=length)


# Folders of golden/quantized, written by make_quantized.py.
QUANTIZED = (
    "fp8_channel",
    "fp8_tensor",
    "fp8_block",
    "int4_group32",
    "int4_group64_zero_points",
    "int4_group128",
    "int8_channel",
    "nvfp4",
    "mxfp4",
    "nf4",
)
QUANTIZED_VOCABULARY = 64


def quantized_ids() -> np.ndarray:
    """Ids [1, 40]: longer than a chunk."""
    return np.random.RandomState(40).randint(0, QUANTIZED_VOCABULARY, (1, 40))
