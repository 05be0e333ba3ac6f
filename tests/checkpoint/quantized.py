"""The golden checkpoints in the formats of quantized releases, and experts as those name them."""

from pathlib import Path

import numpy as np

QUANTIZED = Path(__file__).parents[1] / "golden" / "quantized"


def one_by_one(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The experts as modules of their own, [out, in]."""
    result = {}
    for name, array in weights.items():
        stem, found, kind = name.rpartition(".experts.")
        if not found:
            result[name] = array
            continue
        for index, expert in enumerate(array):
            parts = {"down_proj": expert.T}
            if kind == "gate_up_proj":
                gate, up = np.split(expert.T, 2)
                parts = {"gate_proj": gate, "up_proj": up}
            for part, matrix in parts.items():
                result[f"{stem}.experts.{index}.{part}.weight"] = matrix
    return result
