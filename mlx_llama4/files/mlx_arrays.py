"""MLX's arrays as safetensors files store them: the names of dtypes, and the bytes."""

import mlx.core as mx
import numpy as np

MLX_DTYPES = {
    "U8": mx.uint8,
    "I32": mx.int32,
    "U32": mx.uint32,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "F32": mx.float32,
}
STORED_DTYPES = {dtype: name for name, dtype in MLX_DTYPES.items()}


def array_bytes(array: mx.array) -> memoryview:
    """The array's items in order, as bytes; evaluates it."""
    array = mx.contiguous(array)
    # numpy has no bfloat16.
    array = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return np.asarray(array).data.cast("B")
