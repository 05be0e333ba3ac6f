"""Writes the beginning of a safetensors file: the length of a JSON text, then the text."""

import json
import math
from collections.abc import Mapping

from mlx_llama4.files.dtypes import ITEM_BYTES


def safetensors_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str],
    alignment: int = 8,
) -> bytes:
    """Everything up to the data. tensors: name → dtype ("BF16") and shape, in the data's order.

    The header is padded so that data begins at a multiple of `alignment`; the format asks for 8.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        stop = offset + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % alignment)
    return len(text).to_bytes(8, "little") + text
