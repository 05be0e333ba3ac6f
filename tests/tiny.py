"""The tiny random models of doctor/tiny.py, as checkpoints on the disk."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from mlx_llama4.doctor.tiny import (
    LAYERS,
    PATCH_ID,
    SIDE_PIXELS,
    VOCABULARY,
    config,
    fingerprint,
    image_ids,
    pixels,
    tensors,
    text_ids,
    text_shapes,
    to_bfloat16,
)

__all__ = [
    "LAYERS",
    "PATCH_ID",
    "SIDE_PIXELS",
    "VOCABULARY",
    "config",
    "fingerprint",
    "image_ids",
    "pixels",
    "tensors",
    "text_ids",
    "text_only",
    "text_shapes",
    "to_bfloat16",
    "write_checkpoint",
    "write_safetensors",
]


def text_only(config_: dict[str, Any]) -> dict[str, Any]:
    """The flat config.json of a Llama4ForCausalLM checkpoint."""
    flat = copy.deepcopy(config_["text_config"])
    return flat | {"architectures": ["Llama4ForCausalLM"], "torch_dtype": "bfloat16"}


def write_checkpoint(
    folder: Path,
    config_: dict[str, Any],
    weights: dict[str, np.ndarray],
    dtype: str = "F32",
    shards: int = 1,
) -> Path:
    """config.json and safetensors, in one file or in several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_, indent=2))
    names = sorted(weights)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", weights, dtype)
        return folder
    weight_map = {}
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = names[index::shards]
        write_safetensors(folder / file, {name: weights[name] for name in part}, dtype)
        weight_map.update(dict.fromkeys(part, file))
    index_json = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_json))
    return folder


def write_safetensors(path: Path, weights: dict[str, np.ndarray], dtype: str = "F32") -> None:
    """dtype: "F32", "BF16" or "F16"."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, offset = [], 0
    for name, array in weights.items():
        array = np.ascontiguousarray(array, np.float32)
        if dtype == "F16":
            array = array.astype(np.float16)
        elif dtype == "BF16":  # exact in it, so the upper halves say it all
            array = (array.view(np.uint32) >> 16).astype(np.uint16)
        blob = array.tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))
