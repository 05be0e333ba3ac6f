"""Random bfloat16 checkpoints to work on, in Hugging Face's layout, with the demo's tokenizer.

They are written a block at a time, so that size costs no memory. A sparse one is all header: its
data are holes that read as zeros and take no room on the disk.
"""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import numpy as np

from mlx_llama4.config import parse_config
from mlx_llama4.demo.questions import CHECKPOINT
from mlx_llama4.errors import InputError
from mlx_llama4.tensors import model_tensors
from mlx_llama4.units import human_bytes

ITEM_BYTES = 2
BLOCK_ITEMS = 4 * 2**20
SHARD_BYTES = 200 * 10**6
# The most that a run writes, as a share of the source: 8 bits, scales, small parts.
OUTPUT_SHARE = 0.6

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "generation_config.json",
)


class Preset(StrEnum):
    small = "small"
    vocabulary = "vocabulary"
    maverick_layer = "maverick-layer"


@dataclass(frozen=True)
class Size:
    """The shapes of a model. Every layer has experts."""

    hidden_size: int
    layers: int
    experts: int
    expert_width: int
    vocabulary: int
    head_dim: int = 64
    heads: int = 8
    key_value_heads: int = 2
    chunk: int = 8192  # tokens
    global_layers: bool = True  # every fourth layer is global
    sparse: bool = False  # weights are zeros that take no room on the disk


SIZES = {
    Preset.small: Size(512, 4, 16, 1024, 16_384),
    Preset.vocabulary: Size(512, 8, 64, 1024, 202_048),
    # One layer with experts of the released Maverick: its gate_up_proj takes 21.5 GB.
    Preset.maverick_layer: Size(5120, 1, 128, 8192, 202_048, 128, 40, 8, sparse=True),
}

Shapes = dict[str, tuple[int, ...]]


def describe(preset: Preset) -> str:
    size = SIZES[preset]
    layers = "one layer" if size.layers == 1 else f"each of {size.layers} layers"
    kind = "zeros in a sparse file" if size.sparse else "random bf16"
    return (
        f"{preset}: {kind}, {size.experts} experts in {layers}, "
        f"vocabulary of {size.vocabulary:,} tokens"
    )


def data_bytes(preset: Preset) -> int:
    """Bytes of all tensors of a preset."""
    return sum(map(_nbytes, _shapes(SIZES[preset]).values()))


def write_source(preset: Preset, folder: Path, seed: int = 0) -> Path:
    """Write a preset's checkpoint. Raises InputError if the disk has no room for it."""
    size = SIZES[preset]
    check_room(folder.parent, data_bytes(preset), size.sparse)
    return write_checkpoint(size, folder, seed)


def check_room(folder: Path, source_bytes: int, source_is_free: bool) -> None:
    """Raises InputError if the disk of `folder` has no room for a run's source and output."""
    needed = source_bytes * (OUTPUT_SHARE + (0 if source_is_free else 1))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder} has {human_bytes(free)} free, {human_bytes(needed)} are needed; "
            "set TMPDIR to a folder on a larger disk"
        )


def write_checkpoint(size: Size, folder: Path, seed: int = 0) -> Path:
    """Write config.json, tokenizer, shards and their index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(size), indent=2))
    for name in SIDE_FILES:
        shutil.copy(CHECKPOINT / name, folder / name)
    random = np.random.Generator(np.random.SFC64(seed))
    shards = list(_shards(_shapes(size)))
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / file).open("wb") as stream:
            _write_shard(stream, shapes, None if size.sparse else random)
        weight_map |= dict.fromkeys(shapes, file)
    total = sum(_nbytes(shape) for shapes in shards for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def config(size: Size) -> dict[str, Any]:
    """config.json as the releases spell it; the peers cannot read transformers 5's spelling."""
    raw = json.loads((CHECKPOINT / "config.json").read_text())
    for part in (raw["text_config"], raw["vision_config"]):
        part["rope_theta"] = part.pop("rope_parameters")["rope_theta"]
    for key in ("layer_types", "moe_layers", "no_rope_layers", "no_rope_layer_interval"):
        del raw["text_config"][key]
    raw["vision_config"]["vision_feature_layer"] = -1  # mlx-vlm needs it
    raw["torch_dtype"] = raw.pop("dtype")
    raw["text_config"] |= {
        "hidden_size": size.hidden_size,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.key_value_heads,
        "head_dim": size.head_dim,
        "intermediate_size": size.expert_width,
        "intermediate_size_mlp": 2 * size.expert_width,
        "interleave_moe_layer_step": 1,
        "num_local_experts": size.experts,
        "vocab_size": size.vocabulary,
        "rope_scaling": None,
        "attention_chunk_size": size.chunk,
        "floor_scale": size.chunk,
        "max_position_embeddings": 1_048_576,
    }
    if not size.global_layers:
        raw["text_config"]["no_rope_layers"] = [1] * size.layers
    return raw


def _shapes(size: Size) -> Shapes:
    """Name → shape in Hugging Face's layout: gate and up in one, experts [expert, in, out]."""
    shapes: Shapes = {}
    for name, spec in model_tensors(parse_config(config(size))).items():
        module = name.removesuffix(".weight")
        if ".experts." not in name:
            shapes[name] = spec.shape
        elif module.endswith("gate_proj"):
            experts, out, into = spec.shape
            shapes[module.replace("gate_proj", "gate_up_proj")] = (experts, into, 2 * out)
        elif module.endswith("down_proj"):
            experts, out, into = spec.shape
            shapes[module] = (experts, into, out)
    return shapes


def _shards(shapes: Shapes) -> Iterator[Shapes]:
    shard: Shapes = {}
    for name, shape in shapes.items():
        if shard and sum(map(_nbytes, shard.values())) + _nbytes(shape) > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def _write_shard(stream: IO[bytes], shapes: Shapes, random: np.random.Generator | None) -> None:
    """Write a safetensors file. random: None leaves its data as holes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + _nbytes(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    stream.write(len(text).to_bytes(8, "little") + text)
    if random is None:
        stream.truncate(8 + len(text) + offset)
        return
    for name, shape in shapes.items():
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        items = math.prod(shape)
        for start in range(0, items, BLOCK_ITEMS):
            count = min(BLOCK_ITEMS, items - start)
            block = random.standard_normal(count, np.float32) * np.float32(0.02) + np.float32(mean)
            # The upper half of a float32 is a bfloat16, rounded towards zero.
            stream.write((block.view(np.uint32) >> 16).astype("<u2").tobytes())


def _nbytes(shape: tuple[int, ...]) -> int:
    return math.prod(shape) * ITEM_BYTES
