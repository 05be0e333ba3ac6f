"""Describes a model folder from its config.json and the headers of its shards. Reads no weights."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_llama4.checkpoint.matching import Matching
from mlx_llama4.checkpoint.open import Source, check_format, open_source, packing_names
from mlx_llama4.checkpoint.sources import WeightSource
from mlx_llama4.config import Config
from mlx_llama4.errors import CheckpointError
from mlx_llama4.files.foreign import stand_in_among
from mlx_llama4.hub.remote import open_remote
from mlx_llama4.planning.releases import title_of
from mlx_llama4.tensors import layer_number


@dataclass(frozen=True)
class PartReport:
    name: str
    parameters: int
    nbytes: int
    stored_as: tuple[str, ...]


@dataclass(frozen=True)
class ExpertReport:
    """The routed experts of one layer."""

    layer: int
    experts: int
    expert_bytes: int  # of one expert, as stored
    nbytes: int
    stored_as: tuple[str, ...]
    files: tuple[str, ...]  # names of the shards they are in


@dataclass(frozen=True)
class Inspection:
    folder: str
    variant: str
    architecture: str
    layout: str
    quantization: str
    parts: tuple[PartReport, ...]
    experts: tuple[ExpertReport, ...]
    problems: dict[str, list[str]]
    ignored: dict[str, int]  # reason → how many tensors are left out for it
    tensors: int
    files: int
    obstacle: str | None  # why it cannot be converted, though it may be complete
    notes: tuple[str, ...]  # what else is in the folder

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def complete(self) -> bool:
        return not any(self.problems.values())

    @property
    def convertible(self) -> bool:
        return self.complete and self.obstacle is None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "complete": self.complete,
            "convertible": self.convertible,
        }


def inspect_folder(folder: str | Path) -> Inspection:
    """Raises CheckpointError or ConfigError if the folder is not a checkpoint at all."""
    return _inspect(str(folder), open_source(folder))


def inspect_repository(repository: str, revision: str | None = None) -> Inspection:
    """As `inspect_folder`, for a repository of the hub. Fetches headers, no weights.

    Raises HubError and RunError too.
    """
    checkpoint = open_remote(repository, revision).checkpoint
    return _inspect(repository, open_source(checkpoint.folder, checkpoint))


def _inspect(name: str, source: Source) -> Inspection:
    return Inspection(
        folder=name,
        variant=_variant(source.config),
        architecture=_architecture(source.config),
        layout="MLX layout" if source.matching.is_mlx else source.layout,
        quantization=_quantization(source.config, source.matching),
        parts=_parts(source.matching),
        experts=_experts(source.matching),
        problems=source.matching.problems,
        ignored=dict(source.matching.ignored),
        tensors=len(source.checkpoint.tensors),
        files=len(source.checkpoint.files),
        obstacle=_obstacle(source),
        notes=tuple(source.notes),
    )


def _obstacle(source: Source) -> str | None:
    if (problem := stand_in_among(source.folder)) is not None:
        return problem
    try:
        check_format(source.folder, source.config.foreign_quantization)
        source.matching.check(source.folder)
    except CheckpointError as error:
        return str(error)
    return None


def _variant(config: Config) -> str:
    kind = "text only" if config.vision is None else "text and images"
    return f"{title_of(config) or 'a Llama 4 of its own size'}, {kind}"


def _architecture(config: Config) -> str:
    text = config.text
    count = text.num_hidden_layers
    global_layers = sum(kind.attention == "global" for kind in text.layers)
    moe_layers = sum(kind.feed_forward == "moe" for kind in text.layers)
    chunk = text.attention_chunk_size
    rope = f"chunked ({chunk})" if chunk else "with RoPE and no chunks"
    attention = [f"{count - global_layers} {rope}", f"{global_layers} global"]
    layers = " and ".join(attention) if global_layers else attention[0]
    feed_forward = f"{moe_layers} with {text.num_local_experts} experts" if moe_layers else "dense"
    vision = f", {config.vision.num_hidden_layers} vision layers" if config.vision else ""
    return (
        f"{count} layers, {layers}, {feed_forward}{vision}; "
        f"context {text.max_position_embeddings:,}"
    )


def _quantization(config: Config, matching: Matching) -> str:
    if config.foreign_quantization:
        return f"quantized by {config.foreign_quantization}"
    packings = packing_names(matching)
    return f"quantized: {packings}" if packings else "not quantized"


def _parts(matching: Matching) -> tuple[PartReport, ...]:
    parameters: dict[str, int] = defaultdict(int)
    nbytes: dict[str, int] = defaultdict(int)
    stored_as: dict[str, set[str]] = defaultdict(set)
    for name, spec in matching.specs.items():
        if (source := matching.sources.get(name)) is None:
            continue
        parameters[spec.part] += spec.size
        nbytes[spec.part] += sum(t.nbytes for t in source.tensors) // len(source.targets)
        stored_as[spec.part].add(_stored_as(source))
    return tuple(
        PartReport(part, parameters[part], nbytes[part], tuple(sorted(stored_as[part])))
        for part in parameters
    )


def _experts(matching: Matching) -> tuple[ExpertReport, ...]:
    layers: dict[int, list[str]] = defaultdict(list)
    for name, spec in matching.specs.items():
        if spec.part == "routed experts" and name in matching.sources:
            layers[layer_number(name)].append(name)
    reports = []
    for layer, names in layers.items():
        count = matching.specs[names[0]].shape[0]
        sources = [matching.sources[name] for name in names]
        nbytes = sum(sum(t.nbytes for t in one.tensors) // len(one.targets) for one in sources)
        reports.append(
            ExpertReport(
                layer,
                count,
                nbytes // count,
                nbytes,
                tuple(sorted({_stored_as(one) for one in sources})),
                tuple(sorted({tensor.file.name for one in sources for tensor in one.tensors})),
            )
        )
    return tuple(reports)


def _stored_as(source: WeightSource) -> str:
    packing = source.quantization
    return f"{packing.bits} bits {packing.mode}" if packing else source.tensors[0].dtype
