"""Opens a folder in Meta's own layout: params.json, and one consolidated.NN.pth for each rank, with
fp8_scales_N.pt beside it if the routed experts have 8 bits. Reads headers only.
"""

import re
import zipfile
from pathlib import Path
from typing import Any

from mlx_llama4.checkpoint.matching import Matching
from mlx_llama4.checkpoint.meta.matching import Rank, match_ranks
from mlx_llama4.checkpoint.meta.names import scales_of
from mlx_llama4.checkpoint.meta.params import config_of
from mlx_llama4.checkpoint.meta.torch_file import read_torch_file
from mlx_llama4.checkpoint.safetensors import Checkpoint, StoredTensor
from mlx_llama4.config import Config, parse_config
from mlx_llama4.errors import CheckpointError, ConfigError
from mlx_llama4.files.json_file import read_json

EMBEDDING = "tok_embeddings.weight"


def is_meta(folder: Path) -> bool:
    """Is this a folder as llama.com delivers it?"""
    if (folder / "config.json").is_file():
        return False
    return (folder / "params.json").is_file() or any(folder.glob("consolidated*.pth"))


def open_meta(folder: Path) -> tuple[dict[str, Any], Checkpoint, Config, Matching]:
    """config.json in Hugging Face's spelling, the tensors of all ranks, the config, and the sources
    of the model's tensors.

    Raises CheckpointError for files that are missing or damaged, ConfigError for params.json.
    Problems of single tensors are in the matching.
    """
    _refuse_int4(folder)
    path = folder / "params.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no params.json; download it too")
    params = read_json(path)
    ranks = [
        Rank(file, _by_name(file) | _scales(folder, index))
        for index, file in enumerate(_files(folder))
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
    return raw, Checkpoint(folder, tensors), config, match_ranks(ranks, config)


def _refuse_int4(folder: Path) -> None:
    for scales in folder.glob("int4_scales_*.pt"):
        raise CheckpointError(
            f"{folder} has weights of 4 bits ({scales.name}), which are not supported in Meta's "
            "layout; use another release, or the one in Hugging Face's layout"
        )


def _scales(folder: Path, index: int) -> dict[str, StoredTensor]:
    file = folder / f"fp8_scales_{index}.pt"
    if not file.is_file():
        return {}
    return {scales_of(name): tensor for name, tensor in _by_name(file).items()}


def _by_name(file: Path) -> dict[str, StoredTensor]:
    return {tensor.name: tensor for tensor in read_torch_file(file)}


def _files(folder: Path) -> list[Path]:
    """The files of all ranks, in order."""
    found = sorted(folder.glob("consolidated*.pth"))
    names = [path.name for path in found]
    if names == ["consolidated.pth"]:
        return found
    matches = [re.fullmatch(r"consolidated\.(\d\d)\.pth", name) for name in names]
    numbers = [int(match[1]) for match in matches if match is not None]
    if not names or len(numbers) < len(names):
        raise CheckpointError(
            f"{folder} holds no consolidated.00.pth and so on, or others beside them; "
            "give the folder as it was downloaded"
        )
    promised = [f"consolidated.{rank:02}.pth" for rank in range(numbers[-1] + 1)]
    _refuse_copies(found)
    missing = [name for name in promised if name not in names]
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(promised)} ranks missing ({missing[0]}); "
            "download them again"
        )
    return found


def _refuse_copies(files: list[Path]) -> None:
    """One rank under two names would pass every other check and make a wrong model. The checksums
    in a file's directory tell its contents, if its writer gave any.
    """
    seen: dict[tuple[int, ...], Path] = {}
    for file in files:
        if not zipfile.is_zipfile(file):
            return  # refused elsewhere, with a reason
        with zipfile.ZipFile(file) as archive:
            checksums = tuple(entry.CRC for entry in archive.infolist())
        first = seen.setdefault(checksums, file)
        if first != file and any(checksums):
            raise CheckpointError(
                f"{file} is the same as {first.name}; download the rank of that number again"
            )


def _check_count(folder: Path, count: int, rows: int, vocab_size: int) -> None:
    """All ranks have the same number of vocabulary rows, so it tells how many ranks there are."""
    if rows and vocab_size % rows == 0 and vocab_size != rows * count:
        raise CheckpointError(
            f"{folder} holds {count} consolidated.*.pth files, but each has {rows:,} of "
            f"{vocab_size:,} tokens, so there must be {vocab_size // rows}; download it again"
        )
