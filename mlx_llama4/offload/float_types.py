"""Converts stored floats between types without MLX, so that reading threads can do it."""

import numpy as np

from mlx_llama4.files.dtypes import ITEM_BYTES


def bits_of(dtype: str) -> np.dtype:
    """Integers that hold the bits of a type, as safetensors spells it."""
    return np.dtype(f"u{ITEM_BYTES[dtype]}")


def as_type(bits: np.ndarray, source: str, target: str) -> np.ndarray:
    """Bits of floats (of dtype bits_of(source)) → bits of the same values in `target`, rounded to
    nearest, ties to even, as MLX rounds.
    """
    if source == target:
        return bits
    if source == "BF16":
        wide = bits.astype(np.uint32) << 16
    elif source == "F16":
        wide = bits.view(np.float16).astype(np.float32).view(np.uint32)
    else:
        wide = bits
    if target == "F32":
        return wide
    if target == "F16":
        with np.errstate(over="ignore"):
            return wide.view(np.float32).astype(np.float16).view(np.uint16)
    rounded = wide + 0x7FFF + ((wide >> 16) & 1)
    is_nan = (wide & 0x7FFFFFFF) > 0x7F800000  # rounding could make it infinite
    return np.where(is_nan, 0x7FC0, rounded >> 16).astype(np.uint16)
