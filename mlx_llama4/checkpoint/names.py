"""The names of model tensors in a source, and names of a source that are ignored.

Every name in a source must be known here, or ignored here with a reason. An unknown one stops the
conversion, because a tensor left out silently makes a model that is silently wrong.
"""

import re

IGNORED = {
    # Buffers that some versions of transformers saved.
    r".*\.rotary_emb\.inv_freq": "RoPE frequencies follow from rope_theta and rope_scaling",
    r"vision_model\.rotary_embedding\.freqs_ci": "vision RoPE angles follow from the patch grid",
    # compressed-tensors.
    r".*\.weight_shape": "the shapes follow from config.json, and what is packed must agree",
    r".*\.input_scale": "activations are not quantized here",
    r".*\.[kv]_scale": "the cache is not quantized by a checkpoint's scales",
}


def is_ignored(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in IGNORED)


def spellings(target: str) -> tuple[str, ...]:
    """Names of a model tensor, or module, in Hugging Face's layout and in MLX's. Text-only
    checkpoints omit the first part.
    """
    short = target.removeprefix("language_model.")
    return (target,) if short == target else (target, short)
