"""Source tensor name → model tensor names and how to lay the source out for them.

Every name of a source must be known here or ignored here with a reason; an unknown one stops
the conversion, since a tensor that is silently left out makes a model that is silently wrong.
"""

import re
from dataclasses import dataclass

from mlx_llama4.convert.layouts import Layout


@dataclass(frozen=True)
class Source:
    """One source tensor. `targets` are the model tensors it holds, in the order in which
    `layout` yields them.
    """

    name: str
    targets: tuple[str, ...]
    layout: Layout = "as is"


# Buffers that some versions of transformers saved; both are recomputed from the config.
IGNORED = {
    r".*\.rotary_emb\.inv_freq": "RoPE frequencies follow from rope_theta and rope_scaling",
    r"vision_model\.rotary_embedding\.freqs_ci": "vision RoPE angles follow from the patch grid",
}


def source_of(name: str) -> Source | None:
    """The source tensor called `name`; None if it is ignored.

    Known is Hugging Face's layout: `language_model.…`, `vision_model.…` and
    `multi_modal_projector.…` for multimodal checkpoints, `model.…` and `lm_head.…` for
    text-only ones; routed experts stacked, [experts, in, out], gate and up side by side.
    Whether a target exists is for the caller to check.
    """
    if any(re.fullmatch(pattern, name) for pattern in IGNORED):
        return None
    target = name
    if name.startswith(("model.", "lm_head.")):
        target = f"language_model.{name}"
    if target.endswith(".experts.gate_up_proj"):
        stem = target.removesuffix("gate_up_proj")
        return Source(name, (f"{stem}gate_proj.weight", f"{stem}up_proj.weight"), "gate and up")
    if target.endswith(".experts.down_proj"):
        return Source(name, (f"{target}.weight",), "transposed")
    return Source(name, (target,))
