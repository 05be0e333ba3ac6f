"""Files as torch.save writes them, made without torch: pickle instructions, storages, archive.

The pieces are bytes of the pickle's program, so that a test can put together what torch never
would.
"""

import math
import zipfile
from pathlib import Path

import numpy as np

from tests.tiny import to_bfloat16

STORAGES = {
    "F32": "FloatStorage",
    "F16": "HalfStorage",
    "BF16": "BFloat16Storage",
    "I64": "LongStorage",
}
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "F8_E4M3": 1}
ORDERED_DICT = b"ccollections\nOrderedDict\n"
EMPTY_DICT = ORDERED_DICT + b")R"
TRUE, FALSE, NONE = b"\x88", b"\x89", b"N"
# io.BytesIO(b"\x00abc"), as transformer-engine's modules leave behind.
BYTES_IO = b"c_io\nBytesIO\n)\x81" + (
    b"(c_codecs\nencode\n(X\x04\x00\x00\x00\x00abcX\x06\x00\x00\x00latin1tRK\x04Ntb"
)


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def several(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def numbers(values: tuple[int, ...]) -> bytes:
    return several(*map(number, values))


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def storage(key: str, dtype: str, count: int) -> bytes:
    of = named("torch.storage.UntypedStorage" if dtype == "F8_E4M3" else f"torch.{STORAGES[dtype]}")
    return several(text("storage"), of, text(key), text("cpu"), number(count)) + b"Q"


def tensor(
    key: str,
    dtype: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    first: int = 0,
) -> bytes:
    if strides is None:
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    arguments = [storage(key, dtype, math.prod(shape)), number(first)]
    arguments += [numbers(shape), numbers(strides), FALSE, EMPTY_DICT]
    if dtype == "F8_E4M3":
        arguments.append(named("torch.float8_e4m3fn"))
    version = 3 if dtype == "F8_E4M3" else 2
    return named(f"torch._utils._rebuild_tensor_v{version}") + several(*arguments) + b"R"


def parameter(value: bytes) -> bytes:
    return named("torch._utils._rebuild_parameter") + several(value, TRUE, EMPTY_DICT) + b"R"


def program(entries: dict[str, bytes]) -> bytes:
    """The pickle of a state dict, with its _metadata."""
    items = b"".join(text(name) + value for name, value in entries.items())
    metadata = b"}" + text("_metadata") + EMPTY_DICT + b"sb"
    return b"\x80\x02" + EMPTY_DICT + b"(" + items + b"u" + metadata + b"."


def write_archive(
    path: Path,
    pickled: bytes,
    storages: list[bytes],
    compression: int = zipfile.ZIP_STORED,
    root: str = "consolidated",
) -> Path:
    """Storages start at multiples of 64 bytes, by a padding that the directory does not repeat."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", pickled)
        archive.writestr(f"{root}/byteorder", b"little")
        for key, data in enumerate(storages):
            info = zipfile.ZipInfo(f"{root}/data/{key}")
            info.compress_type = compression
            start = archive.fp.tell() + 30 + len(info.filename)
            padding = -(start + 4) % 64
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            archive.writestr(info, data)
        for info in archive.filelist:
            info.extra = b""
        archive.writestr(f"{root}/version", b"3\n")
    return path


def write_torch_file(
    path: Path, weights: dict[str, np.ndarray], dtype: str = "F32", extra: dict | None = None
) -> Path:
    """weights: float32, stored as `dtype`; int64; or int8, the codes of e4m3. extra: further
    entries, as pieces of the program.
    """
    entries, storages = {}, []
    for name, array in weights.items():
        kind = {"int8": "F8_E4M3", "int64": "I64"}.get(str(array.dtype), dtype)
        entries[name] = parameter(tensor(str(len(storages)), kind, array.shape))
        storages.append(stored_bytes(array, kind))
    return write_archive(path, program(entries | (extra or {})), storages)


def stored_bytes(array: np.ndarray, dtype: str) -> bytes:
    array = np.ascontiguousarray(array)
    if dtype == "F16":
        array = array.astype(np.float16)
    elif dtype == "BF16":
        array = (to_bfloat16(array).view(np.uint32) >> 16).astype(np.uint16)
    return array.tobytes()
