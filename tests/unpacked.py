"""A packed model folder as what it stands for, in float32."""

import json
import shutil
from pathlib import Path

import mlx.core as mx

from mlx_llama4.quantization import Quantization


def dequantized(folder: Path, out: Path, quantization: Quantization) -> Path:
    """The same folder with its packed tensors unpacked to float32."""
    shutil.copytree(folder, out)
    weights = mx.load(str(folder / "model.safetensors"))
    for name in [name for name in weights if name.endswith(".scales")]:
        module = name.removesuffix(".scales")
        scales = weights.pop(name)
        if quantization.mode == "affine":
            scales = scales.astype(mx.float32)
        biases = weights.pop(f"{module}.biases", None)
        weights[f"{module}.weight"] = mx.dequantize(
            weights[f"{module}.weight"],
            scales,
            None if biases is None else biases.astype(mx.float32),
            quantization.group_size,
            quantization.bits,
            quantization.mode,
        ).astype(mx.float32)
    mx.save_safetensors(str(out / "model.safetensors"), weights)
    (out / "model.safetensors.index.json").unlink()
    config = json.loads((out / "config.json").read_text())
    del config["quantization"], config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config))
    return out
