"""Lays out shards, their headers and the tensors in them, before there is any data."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_llama4.files.dtypes import ITEM_BYTES
from mlx_llama4.files.safetensors_header import safetensors_header

# Tensor data starts at a multiple of this, the page size of Apple silicon, so that streaming can
# read experts with uncached, aligned reads.
HEADER_ALIGNMENT = 16384


@dataclass(frozen=True)
class OutputTensor:
    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def assign_shards(tensors: Mapping[str, OutputTensor], shard_bytes: int) -> dict[str, list[str]]:
    """File → tensors, in order. A layer's tensors share a shard if they fit into one. Only a shard
    of a single tensor may exceed `shard_bytes`.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for _, group in itertools.groupby(tensors, key=_layer):
        names = list(group)
        if shards[-1] and size + _nbytes(names, tensors) > shard_bytes:
            shards.append([])
            size = 0
        for name in names:
            if shards[-1] and size + tensors[name].nbytes > shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append(name)
            size += tensors[name].nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {
        f"model-{index:05d}-of-{len(shards):05d}.safetensors": names
        for index, names in enumerate(shards, start=1)
    }


def _layer(name: str) -> str:
    """The layer that a tensor belongs to; its module, if that is outside the layers."""
    match = re.match(r".*\.layers\.\d+\.", name)
    return match[0] if match else name.rsplit(".", 1)[0]


def _nbytes(names: Iterable[str], tensors: Mapping[str, OutputTensor]) -> int:
    return sum(tensors[name].nbytes for name in names)


def shard_header(names: list[str], tensors: Mapping[str, OutputTensor]) -> bytes:
    """The start of a safetensors file up to its data."""
    described = {name: (tensors[name].dtype, tensors[name].shape) for name in names}
    return safetensors_header(described, {"format": "mlx"}, HEADER_ALIGNMENT)


def tensor_places(
    folder: Path,
    shards: Mapping[str, list[str]],
    headers: Mapping[str, bytes],
    tensors: Mapping[str, OutputTensor],
) -> dict[str, tuple[Path, int]]:
    """Tensor → file, and byte offset in it."""
    places: dict[str, tuple[Path, int]] = {}
    for file_name, names in shards.items():
        offset = len(headers[file_name])
        for name in names:
            places[name] = (folder / file_name, offset)
            offset += tensors[name].nbytes
    return places


def create_shard(
    file: Path, header: bytes, names: list[str], tensors: Mapping[str, OutputTensor]
) -> None:
    """Makes the file, with its header and full size; keeps the data of an existing one."""
    with file.open("r+b" if file.exists() else "xb") as stream:
        stream.write(header)
        stream.truncate(len(header) + _nbytes(names, tensors))
