"""The models and inputs of doctor's goldens. Needs only numpy.

"scout" and "maverick" have all features of the releases in miniature: chunks of 32 tokens, a
temperature that changes every 16. "wide" has the widths for which fused and packed kernels are
made: heads of 128 (88 in the vision tower), rows of 512.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlx_llama4.doctor import tiny

ROPE_64 = {
    "factor": 16.0,
    "high_freq_factor": 1.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}
WIDE_TEXT = {
    "num_hidden_layers": 4,
    "hidden_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "intermediate_size": 512,
    "intermediate_size_mlp": 1024,
}
WIDE_VISION = {
    "hidden_size": 176,
    "intermediate_size": 704,
    "num_attention_heads": 2,
    "projector_input_dim": 256,
    "projector_output_dim": 256,
    "vision_output_dim": 256,
}
TEXT_TOKENS = 150
IMAGES = {"2x2": [(2, 2)], "two images": [(1, 1), (1, 2)]}  # grids (rows, columns) of the tiles


@dataclass(frozen=True)
class RandomModel:
    """A model of tiny.py."""

    preset: str
    overrides: dict[str, Any] = field(default_factory=dict)  # of its text_config
    vision: dict[str, Any] = field(default_factory=dict)  # overrides of its vision_config
    qk_gain: float = 1.0

    @property
    def config(self) -> dict[str, Any]:
        """The contents of config.json."""
        raw = tiny.config(self.preset, **self.overrides)
        raw["vision_config"] |= self.vision
        return raw

    def weights(self) -> dict[str, np.ndarray]:
        """The weights, float32, by their names in Hugging Face's layout."""
        return tiny.tensors(self.config, qk_gain=self.qk_gain)


MODELS = {
    "scout": RandomModel("scout"),
    "maverick": RandomModel("maverick"),
    "strong_rope": RandomModel("scout", {"rope_scaling": ROPE_64}),
    "wide": RandomModel("scout", WIDE_TEXT, WIDE_VISION),
}
# The inputs ("text" or one of IMAGES) for which the reference's logits are kept, and their seeds.
# The seeds are those with the clearest choices among experts: no two router logits are closer than
# 0.0039 (0.0016 with Maverick's picture). At a closer tie, a GPU's rounding may choose another
# expert, which changes all of that token's logits.
SEEDS = {
    "scout": {"text": 2, "2x2": 13, "two images": 16},
    "maverick": {"text": 10, "2x2": 0},
    "strong_rope": {"text": 47},
    "wide": {"text": 8, "two images": 10},
}


def text_ids(model: str) -> np.ndarray:
    """The text input of a model: ids [1, TEXT_TOKENS]."""
    return tiny.text_ids(TEXT_TOKENS, SEEDS[model]["text"])


def pictures(model: str, images: str) -> tuple[np.ndarray, np.ndarray]:
    """A picture input of a model: ids [1, L] and pixels [n, 3, S, S]."""
    grids = IMAGES[images]
    return tiny.image_ids(grids), tiny.pixels(grids, SEEDS[model][images])


def kept_positions(length: int) -> np.ndarray:
    """The positions, of `length`, whose logits are kept: those before and after each chunk border,
    some in between, and the last.
    """
    borders = [one for border in range(32, length, 32) for one in (border - 1, border)]
    between = range(0, length, 3) if length < TEXT_TOKENS else (0, 15, 16, length - 2)
    return np.array(sorted({*borders, *between, length - 1}))
