"""Opens a checkpoint of any format; names the format to the user, and refuses unknown ones."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_llama4.checkpoint.matching import Matching, match_tensors
from mlx_llama4.checkpoint.names import common_prefix, without_wrappers
from mlx_llama4.checkpoint.safetensors import Checkpoint, open_checkpoint
from mlx_llama4.checkpoint.sources import OneByOne, Plain, WeightSource
from mlx_llama4.config import Config, parse_config, read_config
from mlx_llama4.errors import CheckpointError, ConfigError
from mlx_llama4.files.dtypes import FLOAT_DTYPES
from mlx_llama4.files.foreign import adapter_note
from mlx_llama4.quantization import ForeignQuantization, packing_name
from mlx_llama4.tensors import without_absent_vision

JOURNAL_NAME = "conversion.journal"  # what `convert` keeps in a folder until it is finished

# What quantization_config may say; the tensors themselves say the rest.
METHODS: dict[str, tuple[str | None, ...]] = {
    "compressed-tensors": (
        "float-quantized",
        "naive-quantized",
        "pack-quantized",
        "nvfp4-pack-quantized",
        "mxfp4-pack-quantized",
        "mixed-precision",
    ),
    "fp8": (None,),
    "bitsandbytes": ("4-bit",),
    "modelopt": ("FP8", "NVFP4"),
}


@dataclass(frozen=True)
class Source:
    """An opened checkpoint."""

    folder: Path
    raw: dict[str, Any]  # config.json, in Hugging Face's spelling
    config: Config  # without a vision tower if the weights have none
    checkpoint: Checkpoint
    matching: Matching
    layout: str  # of the weights, in words
    # Name → text of files that the model folder needs and that this format does not have.
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_converted(self) -> bool:
        """Is it an MLX folder, whose arrays are the model's as they are?"""
        return self.matching.is_mlx and self.config.foreign_quantization is None

    @property
    def is_plain(self) -> bool:
        """Are all weights ordinary floats, so that it can run without being converted?"""
        if self.config.foreign_quantization is not None:
            return False
        return all(map(_is_plain, self.matching.sources.values()))

    @property
    def notes(self) -> list[str]:
        """What a user should know of the folder, a line each."""
        return [note for note in (adapter_note(self.folder),) if note is not None]

    @property
    def is_packed(self) -> bool:
        """Is any tensor packed in a way that MLX can keep?"""
        return any(source.quantization for source in self.matching.sources.values())

    @property
    def dtype(self) -> str:
        """The dtype of most unpacked bytes, if it is one of the 16-bit ones; else bfloat16.

        It goes by what is stored, since config.json may say otherwise.
        """
        nbytes: Counter[str] = Counter()
        for tensor in self.checkpoint.tensors.values():
            if tensor.dtype in FLOAT_DTYPES:
                nbytes[tensor.dtype] += tensor.nbytes
        return "float16" if nbytes and nbytes.most_common(1)[0][0] == "F16" else "bfloat16"


def _is_plain(source: WeightSource) -> bool:
    if isinstance(source, OneByOne):
        return all(isinstance(expert, Plain) for expert in source.experts)
    return isinstance(source, Plain)


def open_source(folder: str | Path, checkpoint: Checkpoint | None = None) -> Source:
    """Reads config.json and headers only. checkpoint: the headers, if they are already read.

    Raises ConfigError or CheckpointError if the folder is not a checkpoint. Problems of single
    tensors are in `matching`.
    """
    # Here, since a model that runs is not in Meta's layout, and need not wait for its readers.
    from mlx_llama4.checkpoint.meta.layout import is_meta, open_meta
    from mlx_llama4.checkpoint.meta.params import json_files

    folder = Path(folder)
    if checkpoint is None and is_meta(folder):
        raw, checkpoint, config, matching = open_meta(folder)
        files = {name: json.dumps(text, indent=2) for name, text in json_files(config).items()}
        layout = describe_meta(matching, len(checkpoint.files))
        return Source(folder, raw, config, checkpoint, matching, layout, files)
    return open_with_config(folder, checkpoint)


def open_with_config(folder: Path, checkpoint: Checkpoint | None = None) -> Source:
    """As `open_source`, of a folder that must have a config.json: Hugging Face's or MLX's."""
    if (folder / JOURNAL_NAME).exists():
        raise CheckpointError(
            f"{folder} is an unfinished conversion; repeat the convert command to finish it"
        )
    raw = read_config(folder)
    try:
        config = parse_config(raw)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None
    checkpoint = without_prefix(checkpoint or open_checkpoint(folder))
    config = without_absent_vision(config, checkpoint.tensors)
    matching = match_tensors(checkpoint, config)
    return Source(folder, raw, config, checkpoint, matching, describe(config, matching))


def without_prefix(checkpoint: Checkpoint) -> Checkpoint:
    """With the names that tensors have in the releases, if a prefix stands before all of them, or
    wrappers' words stand within.
    """
    short = {name: without_wrappers(name) for name in checkpoint.tensors}
    if len(set(short.values())) < len(short):  # two tensors must never become one
        short = {name: name for name in short}
    prefix = common_prefix(short.values())
    tensors = {short[name].removeprefix(prefix): one for name, one in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors)


def check_format(folder: Path, foreign: ForeignQuantization | None) -> None:
    if foreign is not None and foreign.format not in METHODS.get(foreign.method, ()):
        raise CheckpointError(
            f"{folder} is quantized by {foreign}, which is not supported; known are bf16, fp16, "
            "fp32, compressed-tensors (FP8, int4, int8, nvfp4, mxfp4), ModelOpt FP8 and NVFP4, "
            "bitsandbytes 4-bit, block-wise fp8, and MLX's own"
        )


def packing_names(matching: Matching) -> str:
    """The packings in use, each once, for people; "" if nothing is packed."""
    found = dict.fromkeys(source.quantization for source in matching.sources.values())
    return "; ".join(packing_name(one) for one in found if one is not None)


def describe_meta(matching: Matching, files: int) -> str:
    packed = any(t.dtype == "F8_E4M3" for s in matching.sources.values() for t in s.tensors)
    return f"Meta's layout, {files} file{'s' * (files != 1)}{', experts in FP8' if packed else ''}"


def describe(config: Config, matching: Matching) -> str:
    if matching.is_mlx:
        return ", ".join(filter(None, ["MLX layout", packing_names(matching)]))
    sources = matching.sources.values()
    experts = any(isinstance(source, OneByOne) for source in sources)
    stored = Counter[str]()
    for source in dict.fromkeys(sources):
        stored[source.tensors[0].dtype] += sum(tensor.nbytes for tensor in source.tensors)
    kind = f"{config.foreign_quantization}, " if config.foreign_quantization else ""
    width = stored.most_common(1)[0][0] if stored else "empty"
    named = {"F8_E4M3": "FP8", "I32": "packed integers", "U8": "4 bits", "U32": "4 bits"}
    return (
        f"Hugging Face layout, {kind}{named.get(width, width)}"
        f"{', experts one by one' if experts else ''}"
    )
