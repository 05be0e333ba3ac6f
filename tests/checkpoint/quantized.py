"""The golden checkpoints in the formats of quantized releases, and experts as those name them."""

from pathlib import Path

import numpy as np

from tests.raw_safetensors import Raw

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


E2M1 = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def e2m1(packed: Raw, axis: int = -1) -> np.ndarray:
    """The values of 4-bit floats, two a byte along an axis, the first in the lower half."""
    codes = np.moveaxis(packed.data.reshape(packed.shape), axis, -1)
    codes = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1)
    values = np.where(codes < 8, 1, -1) * E2M1[codes & 7]
    return np.moveaxis(values, -1, axis).astype(np.float32)


def fp4_weight(tensors: dict[str, Raw], weight: str) -> np.ndarray:
    """The float32 weight of a module in nvfp4 or mxfp4, as compressed-tensors or ModelOpt store
    it, by the formats' definitions.
    """
    packed = tensors.get(f"{weight}_packed") or tensors[weight]
    scale = tensors[f"{weight}_scale"]
    if scale.dtype == "U8":
        factors = np.exp2(scale.data.reshape(scale.shape).astype(np.float32) - 127)
    elif f"{weight}_global_scale" in tensors:
        factors = scale.floats() / tensors[f"{weight}_global_scale"].floats()
    else:
        factors = scale.floats() * tensors[f"{weight}_scale_2"].floats()
    values = e2m1(packed)
    return values * factors.repeat(values.shape[1] // factors.shape[1], 1)
