"""The names of model tensors in a source, and names of a source that are ignored.

Every name in a source must be known here, or ignored here with a reason. An unknown one stops the
conversion, because a tensor left out silently makes a model that is silently wrong.
"""

import re
from collections.abc import Iterable

IGNORED = {
    # Buffers that some versions of transformers saved.
    r".*\.rotary_emb\.inv_freq": "RoPE frequencies follow from rope_theta and rope_scaling",
    r"vision_model\.rotary_embedding\.freqs_ci": "vision RoPE angles follow from the patch grid",
    # compressed-tensors and ModelOpt.
    r".*\.weight_shape": "the shapes follow from config.json, and what is packed must agree",
    r".*\.((gate_up|down)_proj_)?input_(global_)?scale": (
        "scales of inputs: activations are not quantized here"
    ),
    r".*\.[kv]_scale": "scales of keys and values: --kv-bits quantizes the cache by its own",
}

# Of torch.compile, FSDP and activation checkpointing. No model has them, and
# layers are wrapped one by one, too.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def ignored_because(name: str) -> str | None:
    """Why a stored tensor is left out; None if it must not be."""
    return next((why for pattern, why in IGNORED.items() if re.fullmatch(pattern, name)), None)


def is_ignored(name: str) -> bool:
    return ignored_because(name) is not None


def without_wrappers(name: str) -> str:
    """A tensor's name without the words of modules that wrap others, at any place."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def common_prefix(names: Iterable[str]) -> str:
    """What stands before every name of a checkpoint that was saved from inside a wrapper
    ("module." by torch's DataParallel, "model."); "" if nothing does.
    """
    names = [*names]
    for target in spellings("language_model.model.embed_tokens.weight"):
        prefixes = [name.removesuffix(target) for name in names if name.endswith(target)]
        if len(prefixes) == 1 and (not prefixes[0] or prefixes[0].endswith(".")):
            together = all(name.startswith(prefixes[0]) or is_ignored(name) for name in names)
            return prefixes[0] if together else ""
    return ""


def spellings(target: str) -> tuple[str, ...]:
    """Names of a model tensor, or module, in Hugging Face's layout and in MLX's. Text-only
    checkpoints omit the first part.
    """
    short = target.removeprefix("language_model.")
    return (target,) if short == target else (target, short)
