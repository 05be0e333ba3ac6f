"""Turns stored bytes into MLX arrays, and checks that their values survive.

bfloat16 reaches to 3e38, float16 only to 65,504: anything larger would silently become infinite.
The checks look at the stored bits, a block at a time, which is ten times faster than arithmetic.
"""

from typing import TYPE_CHECKING

import numpy as np

from mlx_llama4.checkpoint.safetensors import StoredTensor
from mlx_llama4.errors import RunError

if TYPE_CHECKING:
    import mlx.core as mx

BLOCK_ITEMS = 2**20

# (source, target): the largest bits below the sign that still round to a finite target value. The
# bits of NaN and infinity are larger in all of them.
LARGEST = {
    ("BF16", "bfloat16"): 0x7F7F,
    ("BF16", "float32"): 0x7F7F,
    ("BF16", "float16"): 0x477F,
    ("F16", "bfloat16"): 0x7BFF,
    ("F16", "float32"): 0x7BFF,
    ("F16", "float16"): 0x7BFF,
    ("F32", "bfloat16"): 0x7F7F7FFF,
    ("F32", "float32"): 0x7F7FFFFF,
    ("F32", "float16"): 0x477FEFFF,
}
LARGEST_VALUE = {"bfloat16": 3.3895e38, "float16": 65504.0, "float32": 3.4028e38}


def fits(data: np.ndarray, source: str, target: str) -> bool:
    """Are all values finite in `target`?

    data: bytes, uint8. source: a dtype as safetensors spells it ("BF16"). target: as MLX does.
    """
    bits: np.ndarray = data.view(np.uint32 if source == "F32" else np.uint16)
    without_sign = 0x7FFFFFFF if source == "F32" else 0x7FFF
    limit = LARGEST[source, target]
    return all(
        (bits[start : start + BLOCK_ITEMS] & without_sign).max() <= limit
        for start in range(0, len(bits), BLOCK_ITEMS)
    )


def check_fit(data: np.ndarray, tensor: StoredTensor, dtype: str) -> None:
    """Raises RunError if a value in `data`, bytes of a float tensor, is not finite in `dtype`."""
    if not fits(data, tensor.dtype, dtype):
        raise misfit(tensor, dtype)


def check_products(data: np.ndarray, scale: StoredTensor, largest: float, dtype: str) -> None:
    """Raises RunError if a number of up to `largest`, times one of the finite scales in `data`,
    could be too large for `dtype`.
    """
    if scale.dtype == "BF16":
        values = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = data.view(np.float32 if scale.dtype == "F32" else np.float16)
    if float(np.abs(values).max()) * largest > LARGEST_VALUE[dtype]:
        raise misfit(scale, dtype)


def misfit(tensor: StoredTensor, dtype: str) -> RunError:
    return RunError(
        f"{tensor.file}: {tensor.name} has values that {dtype} cannot hold; use another --dtype "
        "or, if these are NaN, download it again"
    )


def as_array(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> "mx.array":
    """Bytes of a float tensor → an array of its dtype ("BF16", "F16", "F32")."""
    import mlx.core as mx

    if dtype == "F32":
        return mx.array(data.view(np.float32).reshape(shape))
    halves = mx.array(data.view(np.uint16).reshape(shape))
    return halves.view(mx.bfloat16 if dtype == "BF16" else mx.float16)
