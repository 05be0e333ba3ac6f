"""Finds the family's models on this machine, in folders and in the hub's cache. Reads headers."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlx_llama4.checkpoint.open import open_source
from mlx_llama4.errors import Llama4Error
from mlx_llama4.planning.expert_weights import stored_experts
from mlx_llama4.planning.inspection import inspect_folder
from mlx_llama4.planning.machine import Machine
from mlx_llama4.planning.placement import Placement, place
from mlx_llama4.planning.planner import Usage, dtype_bytes

CONTEXT = 8192  # tokens; the question of a table is whether a model runs at all

State = Literal["in memory", "limit raised", "streamed", "too large", "not converted", "incomplete"]


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine."""

    name: str  # what --model takes: a folder, or OWNER/NAME from the hub's cache
    folder: Path
    from_hub: bool
    variant: str  # "Llama 4 Scout, text and images"
    packing: str  # "quantized: 4 bits affine", "not quantized"
    nbytes: int  # of its weights, as stored
    state: State  # how it runs on this machine


def find_models(folders: Iterable[Path], machine: Machine) -> list[LocalModel]:
    """The family's models in these folders and in the hub's cache."""
    places = {folder.resolve(): (str(folder), False) for folder in folders}
    for name, folder in cached_repositories():
        places.setdefault(folder.resolve(), (name, True))
    found = (_described(name, folder, hub, machine) for folder, (name, hub) in places.items())
    return [model for model in found if model is not None]


def cached_repositories() -> list[tuple[str, Path]]:
    """Names, and the newest snapshot of each, in the hub's cache (HF_HUB_CACHE, HF_HOME)."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except (CacheNotFound, OSError):
        return []
    repositories = (repo for repo in cache.repos if repo.repo_type == "model" and repo.revisions)
    newest = (
        (repo.repo_id, max(repo.revisions, key=lambda one: one.last_modified).snapshot_path)
        for repo in repositories
    )
    return sorted((name, path) for name, path in newest if (path / "config.json").is_file())


def _described(name: str, folder: Path, from_hub: bool, machine: Machine) -> LocalModel | None:
    """The model in a folder; None if it is not of the family."""
    try:
        found = inspect_folder(folder)
        state = _state(folder, found.complete, machine)
    except (Llama4Error, OSError):
        return _damaged(name, folder, from_hub)
    return LocalModel(
        name, folder, from_hub, found.variant, found.quantization, found.nbytes, state
    )


def _damaged(name: str, folder: Path, from_hub: bool) -> LocalModel | None:
    """A folder that calls itself a Llama 4, though nothing else in it can be read."""
    try:
        is_family = '"llama4' in (folder / "config.json").read_text(errors="replace")
        nbytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    except OSError:
        return None
    if not is_family:
        return None
    return LocalModel(name, folder, from_hub, "a Llama 4", "damaged", nbytes, "incomplete")


def _state(folder: Path, complete: bool, machine: Machine) -> State:
    if not complete:
        return "incomplete"
    source = open_source(folder)
    config = source.config
    if not source.is_converted:
        return "not converted"
    width = dtype_bytes(config.dtype, machine)
    usage = Usage(min(CONTEXT, config.text.max_position_embeddings), width, fused=machine.has_gpu)
    placed = place(config, stored_experts(source.matching, config, width), usage, machine)
    return _placed(placed)


def _placed(placement: Placement) -> State:
    if placement.fit == "no":
        return "too large"
    if placement.streaming is not None:
        return "streamed"
    return "in memory" if placement.fit == "yes" else "limit raised"
