"""What a model folder is, by its config.json and the headers of its shards. Reads no weights."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_llama4.config import Config, load_config
from mlx_llama4.convert.checkpoint import Checkpoint, open_checkpoint
from mlx_llama4.convert.matching import Matching, match_tensors, stored_quantization
from mlx_llama4.convert.remote import open_remote
from mlx_llama4.tensors import without_absent_vision

RELEASES = {(48, 5120, 16): "Llama 4 Scout", (48, 5120, 128): "Llama 4 Maverick"}


@dataclass(frozen=True)
class PartReport:
    name: str
    parameters: int
    nbytes: int
    stored_as: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    folder: str
    variant: str
    architecture: str
    layout: str
    quantization: str
    parts: tuple[PartReport, ...]
    problems: dict[str, list[str]]
    tensors: int
    files: int

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def complete(self) -> bool:
        return not any(self.problems.values())

    def as_dict(self) -> dict[str, Any]:
        totals = {"parameters": self.parameters, "bytes": self.nbytes, "complete": self.complete}
        return asdict(self) | totals


def inspect_folder(folder: Path) -> Inspection:
    """Raises CheckpointError or ConfigError if the folder cannot be made out at all."""
    load_config(folder)  # for its errors, which are clearer where this is no model folder
    return _inspect(str(folder), open_checkpoint(folder))


def inspect_repository(repository: str, revision: str | None = None) -> Inspection:
    """As `inspect_folder`, of a repository of the hub. Fetches headers, no weights.

    Raises HubError or RunError too.
    """
    return _inspect(repository, open_remote(repository, revision).checkpoint)


def _inspect(name: str, checkpoint: Checkpoint) -> Inspection:
    config = load_config(checkpoint.folder)
    config = without_absent_vision(config, checkpoint.tensors)
    matching = match_tensors(checkpoint, config)
    return Inspection(
        folder=name,
        variant=_variant(config),
        architecture=_architecture(config),
        layout=_layout(matching),
        quantization=_quantization(config),
        parts=_parts(checkpoint, config, matching),
        problems=matching.problems,
        tensors=len(checkpoint.tensors),
        files=len(checkpoint.files),
    )


def _variant(config: Config) -> str:
    text = config.text
    key = (text.num_hidden_layers, text.hidden_size, text.num_local_experts)
    kind = "text only" if config.vision is None else "text and images"
    return f"{RELEASES.get(key, 'a Llama 4 of its own size')}, {kind}"


def _architecture(config: Config) -> str:
    text = config.text
    global_layers = sum(kind.attention == "global" for kind in text.layers)
    moe_layers = sum(kind.feed_forward == "moe" for kind in text.layers)
    chunk = "whole context" if text.attention_chunk_size is None else text.attention_chunk_size
    vision = f", {config.vision.num_hidden_layers} vision layers" if config.vision else ""
    return (
        f"{text.num_hidden_layers} layers, {text.num_hidden_layers - global_layers} chunked "
        f"({chunk}) and {global_layers} global, {moe_layers} with {text.num_local_experts} "
        f"experts{vision}; context {text.max_position_embeddings:,}"
    )


def _layout(matching: Matching) -> str:
    if all(name == source.name for name, source in matching.sources.items()):
        return "MLX layout"
    return "Hugging Face layout (not converted yet)"


def _quantization(config: Config) -> str:
    if config.foreign_quantization:
        return f"quantized by {config.foreign_quantization}"
    if config.quantization is None:
        return "not quantized"
    default = config.quantization.default
    return f"quantized: {default.bits} bits, groups of {default.group_size}, {default.mode}"


def _parts(checkpoint: Checkpoint, config: Config, matching: Matching) -> tuple[PartReport, ...]:
    parameters: dict[str, int] = defaultdict(int)
    nbytes: dict[str, int] = defaultdict(int)
    stored_as: dict[str, set[str]] = defaultdict(set)
    packed = set(matching.scales.values())
    for name, spec in matching.specs.items():
        if (source := matching.sources.get(name)) is None:
            continue
        tensor = checkpoint.tensors[source.name]
        parameters[spec.part] += spec.size
        nbytes[spec.part] += tensor.nbytes // len(source.targets)
        if name in packed:
            quantization = stored_quantization(checkpoint, config, name.removesuffix(".weight"))
            stored_as[spec.part].add(f"{quantization.bits} bits {quantization.mode}")
        else:
            stored_as[spec.part].add(tensor.dtype)
    for name, weight in matching.scales.items():
        if name in checkpoint.tensors:
            nbytes[matching.specs[weight].part] += checkpoint.tensors[name].nbytes
    return tuple(
        PartReport(part, parameters[part], nbytes[part], tuple(sorted(stored_as[part])))
        for part in parameters
    )
