"""Finds the tensors of Meta's files that make up each of the model's, and those missing or unknown.

Ranks are joined as they are read, one range of rows at a time. Reads headers only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_llama4.checkpoint.fp8 import Float8
from mlx_llama4.checkpoint.matching import Matching
from mlx_llama4.checkpoint.meta.names import Place, is_ignored, places, scales_of
from mlx_llama4.checkpoint.meta.ranks import Joined, Transposed
from mlx_llama4.checkpoint.safetensors import StoredTensor
from mlx_llama4.checkpoint.sources import OneByOne, Plain, Shape, WeightSource
from mlx_llama4.config import Config
from mlx_llama4.files.dtypes import FLOAT_DTYPES
from mlx_llama4.tensors import TensorSpec, model_tensors

FLOAT8 = "F8_E4M3"


@dataclass(frozen=True)
class Rank:
    """The tensors of one rank's file, and the scales of those that have 8 bits, by `scales_of`."""

    file: Path
    tensors: dict[str, StoredTensor]


def match_ranks(ranks: Sequence[Rank], config: Config) -> Matching:
    matching = Matching(model_tensors(config))
    finder = _Finder(ranks, config, matching)
    for target, spec in matching.specs.items():
        if source := finder.find(target, spec):
            matching.sources[target] = source
    for rank in ranks:
        for name in rank.tensors:
            if name not in finder.taken and not is_ignored(name):
                matching.unknown.append(finder.describe(name, rank))
    return matching


class _Finder:
    """Finds the source of one model tensor at a time; notes what is missing or wrong."""

    def __init__(self, ranks: Sequence[Rank], config: Config, matching: Matching):
        self.ranks = ranks
        self.config = config
        self.matching = matching
        self.taken: set[str] = set()  # Meta's names that are part of a model tensor

    def find(self, target: str, spec: TensorSpec) -> WeightSource | None:
        ways = places(target, self.config.text)
        stored = (way for way in ways if any(way.name in rank.tensors for rank in self.ranks))
        place = next(stored, ways[0])
        is_stacked = place.form == "experts"
        dtypes = (*FLOAT_DTYPES, FLOAT8) if is_stacked else FLOAT_DTYPES
        tensors = self._take(place.name, dtypes)
        if not tensors:
            return None
        scales: Sequence[StoredTensor] = ()
        if tensors[0].dtype == FLOAT8:
            # Scales have the names of the reference's modules, whatever those of the weights.
            scales = self._take(scales_of(ways[-1].name), FLOAT_DTYPES)
            if not scales:
                return None
        source = _source(target, place, tensors, scales, spec.shape)
        if source is None or source.shapes != [spec.shape]:
            shapes = [str(list(one.shape)) for one in (tensors[0], *scales[:1])]
            _note(self.matching.misshapen, f"{place.name} {' with scales '.join(shapes)}")
            return None
        return source

    def describe(self, name: str, rank: Rank) -> str:
        return name if len(self.ranks) == 1 else f"{name} in {rank.file.name}"

    def _take(self, name: str, dtypes: tuple[str, ...]) -> list[StoredTensor]:
        """Each rank's tensor of this name; none unless all ranks have it, in the same form."""
        self.taken.add(name)
        first = next((rank.tensors[name] for rank in self.ranks if name in rank.tensors), None)
        sound: list[StoredTensor] = []
        for rank in self.ranks:
            where, tensor = self.describe(name, rank), rank.tensors.get(name)
            if first is None or tensor is None:
                _note(self.matching.missing, where)
            elif tensor.shape != first.shape:
                _note(self.matching.misshapen, f"{where} {list(tensor.shape)}")
            elif tensor.dtype not in dtypes or tensor.dtype != first.dtype:
                _note(self.matching.mistyped, f"{where} {tensor.dtype}")
            else:
                sound.append(tensor)
        return sound if len(sound) == len(self.ranks) else []


def _note(names: list[str], name: str) -> None:
    if name not in names:  # a stored tensor may hold several of the model's
        names.append(name)


def _source(
    target: str,
    place: Place,
    tensors: Sequence[StoredTensor],
    scales: Sequence[StoredTensor],
    shape: Shape,
) -> WeightSource | None:
    """The source of a tensor, from what the ranks store; None for shapes that do not fit."""
    if scales:
        pairs = zip(tensors, scales, strict=True)
        found = [_float8_experts(target, weight, scale, shape[0]) for weight, scale in pairs]
    else:
        found = [_part(target, place, tensor, shape[0]) for tensor in tensors]
    parts = [part for part in found if part is not None]
    if len(parts) < len(found):
        return None
    if place.axis is None or len(parts) == 1:
        return parts[0]
    return Joined(target, tuple(parts), place.axis)


def _part(target: str, place: Place, tensor: StoredTensor, rows: int) -> WeightSource | None:
    """One rank's part of the target."""
    if place.form == "transposed":
        return Transposed(Plain((target,), tensor))
    if place.form == "experts":
        stacked = _stacked(tensor, rows)
        return None if stacked is None else Plain((target,), stacked, "transposed")
    first, last, pieces = place.share
    if not tensor.shape or tensor.shape[0] % pieces:
        return None
    height = tensor.shape[0] // pieces
    return Plain((target,), _rows(tensor, first * height, last * height))


def _float8_experts(
    target: str, weight: StoredTensor, scale: StoredTensor, experts: int
) -> WeightSource | None:
    """FP8 experts with a scale for each column of [in, out], which is a row of the model's."""
    stacked = _stacked(weight, experts)
    if stacked is None:
        return None
    _, inputs, outputs = stacked.shape
    if math.prod(scale.shape) != experts * outputs:
        return None
    scales = replace(scale, shape=(experts, 1, outputs))
    found = [
        Float8(target, _expert(stacked, index), _expert(scales, index), (inputs, 1))
        for index in range(experts)
    ]
    return OneByOne(tuple(map(Transposed, found)), target)


def _stacked(tensor: StoredTensor, experts: int) -> StoredTensor | None:
    """The tensor as [experts, in, out]; None if it is neither that nor [experts · in, out]."""
    if len(tensor.shape) == 2 and tensor.shape[0] % experts == 0:
        rows, outputs = tensor.shape
        return replace(tensor, shape=(experts, rows // experts, outputs))
    return tensor if len(tensor.shape) == 3 and tensor.shape[0] == experts else None


def _expert(tensor: StoredTensor, index: int) -> StoredTensor:
    rows = _rows(tensor, index, index + 1)
    return replace(rows, shape=tensor.shape[1:])


def _rows(tensor: StoredTensor, start: int, stop: int) -> StoredTensor:
    """A range of a stored tensor's rows, as a stored tensor."""
    row_bytes = tensor.nbytes // max(tensor.shape[0], 1)
    shape = (stop - start, *tensor.shape[1:])
    return replace(tensor, shape=shape, offset=tensor.offset + start * row_bytes)
