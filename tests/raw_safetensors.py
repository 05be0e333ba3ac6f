"""Safetensors files as what is in them, of any dtype: to look at, to change, to damage."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WIDTHS = {"F8_E4M3": 1, "U8": 1, "BF16": 2, "F16": 2, "F32": 4, "I32": 4, "U32": 4, "I64": 8}


@dataclass(frozen=True)
class Raw:
    """data: uint8 [nbytes]"""

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray

    def floats(self) -> np.ndarray:
        """Values of a float tensor, float32."""
        if self.dtype == "BF16":
            values = (self.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif self.dtype == "F8_E4M3":
            values = E4M3[self.data]
        else:
            values = self.data.view({"F16": np.float16, "F32": np.float32}[self.dtype])
        return values.astype(np.float32).reshape(self.shape)

    def words(self) -> np.ndarray:
        return self.data.view(np.uint32).reshape(self.shape)

    def row(self, index: int) -> "Raw":
        data = self.data.reshape(self.shape[0], -1)[index]
        return Raw(self.dtype, self.shape[1:], data)


def bfloat16(values: np.ndarray) -> Raw:
    """values: float32, cut to bfloat16"""
    halves = (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return Raw("BF16", values.shape, halves.reshape(-1).view(np.uint8))


def float32(values: np.ndarray) -> Raw:
    data = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8)
    return Raw("F32", np.shape(values), data)


def read_raw(path: Path) -> dict[str, Raw]:
    blob = path.read_bytes()
    start = 8 + int.from_bytes(blob[:8], "little")
    result = {}
    for name, entry in json.loads(blob[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            data = np.frombuffer(blob[start + first : start + last], np.uint8)
            result[name] = Raw(entry["dtype"], tuple(entry["shape"]), data)
    return result


def write_raw(path: Path, tensors: dict[str, Raw]) -> None:
    header, offset = {}, 0
    for name, tensor in tensors.items():
        nbytes = math.prod(tensor.shape) * WIDTHS[tensor.dtype]
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    text = json.dumps(header).encode()
    blobs = [tensor.data.tobytes() for tensor in tensors.values()]
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def _e4m3(code: int) -> float:
    """Sign, four bits of exponent with bias 7, three of mantissa; no infinity, one NaN a sign."""
    sign, exponent, mantissa = -1 if code & 0x80 else 1, (code >> 3) & 15, code & 7
    if code & 0x7F == 0x7F:
        return math.nan
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


E4M3 = np.array([_e4m3(code) for code in range(256)], np.float32)
