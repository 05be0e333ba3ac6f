"""Meta's own layout as a source: params.json and one consolidated.NN.pth for each rank.

Ranks are joined row range by row range, as they are read. Reads headers only until then.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_llama4.config import Config, parse_config
from mlx_llama4.convert.checkpoint import Checkpoint, StoredTensor
from mlx_llama4.convert.matching import FLOAT_DTYPES, Matching
from mlx_llama4.convert.meta_names import Place, is_ignored, places
from mlx_llama4.convert.meta_params import config_of
from mlx_llama4.convert.ranks import Joined, Transposed
from mlx_llama4.convert.sources import Plain, WeightSource
from mlx_llama4.convert.torch_file import read_torch_file
from mlx_llama4.errors import CheckpointError, ConfigError
from mlx_llama4.json_file import read_json
from mlx_llama4.tensors import TensorSpec, model_tensors

EMBEDDING = "tok_embeddings.weight"


@dataclass(frozen=True)
class Rank:
    file: Path
    tensors: dict[str, StoredTensor]


def is_meta(folder: Path) -> bool:
    """Is this a folder as llama.com gives it?"""
    if (folder / "config.json").is_file():
        return False
    return (folder / "params.json").is_file() or any(folder.glob("consolidated*.pth"))


def open_meta(folder: Path) -> tuple[dict[str, Any], Checkpoint, Config, Matching]:
    """config.json in Hugging Face's spelling, the tensors of all ranks, the config, and what of
    the model is where.

    Raises CheckpointError for files that are missing or damaged, ConfigError for params.json.
    What is wrong with single tensors is in the matching.
    """
    _refuse_packed(folder)
    path = folder / "params.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no params.json; download it too")
    params = read_json(path)
    ranks = [
        Rank(file, {tensor.name: tensor for tensor in read_torch_file(file)})
        for file in _files(folder)
    ]
    embedding = ranks[0].tensors.get(EMBEDDING)
    rows = embedding.shape[0] if embedding and embedding.shape else 0
    raw = config_of(params, str(path), rows * len(ranks))
    _check_count(folder, len(ranks), rows, raw["text_config"]["vocab_size"])
    try:
        config = parse_config(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}, read as config.json: {error}") from None
    # Every rank has tensors of the same names.
    tensors = {
        f"{name} in {rank.file.name}": tensor
        for rank in ranks
        for name, tensor in rank.tensors.items()
    }
    return raw, Checkpoint(folder, tensors), config, _match(ranks, config)


def _refuse_packed(folder: Path) -> None:
    for scales in sorted(folder.glob("*_scales_*.pt")):
        raise CheckpointError(
            f"{folder} is quantized ({scales.name}), which is not supported in Meta's layout; "
            "use the bfloat16 release, or the one in Hugging Face's layout"
        )


def _files(folder: Path) -> list[Path]:
    """The files of all ranks, in order."""
    found = sorted(folder.glob("consolidated*.pth"))
    names = [path.name for path in found]
    if names == ["consolidated.pth"]:
        return found
    numbers = [re.fullmatch(r"consolidated\.(\d\d)\.pth", name) for name in names]
    if not names or not all(numbers):
        raise CheckpointError(
            f"{folder} holds no consolidated.00.pth and so on, or others beside them; "
            "give the folder as it was downloaded"
        )
    promised = [f"consolidated.{rank:02}.pth" for rank in range(int(numbers[-1][1]) + 1)]
    missing = [name for name in promised if name not in names]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(promised)} ranks missing ({missing[0]}); "
            "download them again"
        )
    return found


def _check_count(folder: Path, count: int, rows: int, vocab_size: int) -> None:
    """The ranks have equally many rows of the vocabulary, which tells how many there are."""
    if rows and vocab_size % rows == 0 and vocab_size != rows * count:
        raise CheckpointError(
            f"{folder} holds {count} consolidated.*.pth files, but each has {rows:,} of "
            f"{vocab_size:,} tokens, so there must be {vocab_size // rows}; download it again"
        )


def _match(ranks: Sequence[Rank], config: Config) -> Matching:
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
    """Finds the source of one model tensor at a time; notes what is missing or wrong.

    taken: Meta's names that are part of something.
    """

    def __init__(self, ranks: Sequence[Rank], config: Config, matching: Matching):
        self.ranks = ranks
        self.config = config
        self.matching = matching
        self.taken: set[str] = set()

    def find(self, target: str, spec: TensorSpec) -> WeightSource | None:
        ways = places(target, self.config.text)
        stored = (way for way in ways if any(way.name in rank.tensors for rank in self.ranks))
        place = next(stored, ways[0])
        self.taken.add(place.name)
        if not self._is_sound(place.name):
            return None
        tensors = [rank.tensors[place.name] for rank in self.ranks]
        source = _source(target, place, tensors, spec)
        if source is None or source.shapes != [spec.shape]:
            _note(self.matching.misshapen, f"{place.name} {list(tensors[0].shape)}")
            return None
        return source

    def describe(self, name: str, rank: Rank) -> str:
        return name if len(self.ranks) == 1 else f"{name} in {rank.file.name}"

    def _is_sound(self, name: str) -> bool:
        """Do all ranks have the tensor, of one shape and a type that we read?"""
        shape = next((rank.tensors[name].shape for rank in self.ranks if name in rank.tensors), ())
        sound = True
        for rank in self.ranks:
            where = self.describe(name, rank)
            if name not in rank.tensors:
                _note(self.matching.missing, where)
                sound = False
                continue
            tensor = rank.tensors[name]
            if tensor.shape != shape:
                _note(self.matching.misshapen, f"{where} {list(tensor.shape)}")
                sound = False
            if tensor.dtype not in FLOAT_DTYPES:
                _note(self.matching.mistyped, f"{where} {tensor.dtype}")
                sound = False
        return sound


def _note(names: list[str], name: str) -> None:
    if name not in names:  # several model tensors may be part of one that is stored
        names.append(name)


def _source(
    target: str, place: Place, tensors: Sequence[StoredTensor], spec: TensorSpec
) -> WeightSource | None:
    """Of what the ranks store; None for shapes that cannot be taken apart so."""
    parts = [_part(target, place, tensor, spec) for tensor in tensors]
    if None in parts:
        return None
    if place.axis is None or len(parts) == 1:
        return parts[0]
    return Joined(target, tuple(parts), place.axis)


def _part(target: str, place: Place, tensor: StoredTensor, spec: TensorSpec) -> WeightSource | None:
    """What one rank has of the target. A row range of a stored tensor is a stored tensor too."""
    if place.form == "transposed":
        return Transposed(target, tensor)
    if place.form == "experts":
        experts, (rows, *others) = spec.shape[0], tensor.shape or (0,)
        if len(others) == 1 and rows % experts == 0:
            tensor = replace(tensor, shape=(experts, rows // experts, *others))
        return Plain((target,), tensor, "transposed")
    first, last, pieces = place.share
    if pieces == 1:
        return Plain((target,), tensor)
    if not tensor.shape or tensor.shape[0] % pieces:
        return None
    height = tensor.shape[0] // pieces
    row_bytes = tensor.nbytes // max(tensor.shape[0], 1)
    shape = ((last - first) * height, *tensor.shape[1:])
    offset = tensor.offset + first * height * row_bytes
    return Plain((target,), replace(tensor, shape=shape, offset=offset))
