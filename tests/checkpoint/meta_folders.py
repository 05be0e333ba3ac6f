"""Small checkpoints in Meta's layout, to be changed at will."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlx_llama4.checkpoint.matching import Matching
from mlx_llama4.checkpoint.meta.layout import open_meta
from mlx_llama4.checkpoint.safetensors import Checkpoint
from mlx_llama4.config import Config
from tests import meta_layout, tiny
from tests.torch_files import write_torch_file

# A checkpoint that is opened and never read; small, as many tests write it.
SMALL = tiny.config("maverick", num_hidden_layers=2)


def opened(folder: Path) -> tuple[Checkpoint, Config, Matching]:
    _, checkpoint, config, matching = open_meta(folder)
    matching.check(folder)
    return checkpoint, config, matching


def small(folder: Path, ranks: int = 2) -> Path:
    return meta_layout.write_checkpoint(folder, SMALL, tiny.tensors(SMALL), ranks, "BF16")


def rewrite(folder: Path, rank: int, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Write the file of one rank of a small checkpoint of two again, changed."""
    weights = meta_layout.split(SMALL, tiny.tensors(SMALL), 2)[rank]
    change(weights)
    write_torch_file(folder / f"consolidated.{rank:02}.pth", weights, "BF16")


def with_params(folder: Path, **changes: Any) -> Path:
    path = folder / "params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


PREFIX = "layers.1.feed_forward.experts"
# Meta's name, that of the scales, ours, and whether the ranks divide what an expert puts out.
FLOAT8_EXPERTS = [
    ("moe_w_in_eD_F", "w1", "gate_proj", True),
    ("moe_w_swiglu_eD_F", "w3", "up_proj", True),
    ("moe_w_out_eF_D", "w2", "down_proj", False),
]


def e4m3(codes: np.ndarray) -> np.ndarray:
    sign, exponent, mantissa = codes >> 7, (codes >> 3) & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent.astype(int) - 7)
    return np.where(sign, -1, 1) * np.where(exponent, normal, mantissa / 8 * 2.0**-6)


def float8_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """A small checkpoint of two ranks whose experts have 8 bits → their values, by our names.

    As the reference's quantize.py has it: a scale for each output of an expert's part in a rank.
    """
    random = np.random.RandomState(0)
    small(folder)
    parts: dict[str, list[np.ndarray]] = {}
    for rank in range(2):
        changed, scales = {}, {}
        for meta, number, ours, divides_outputs in FLOAT8_EXPERTS:
            outputs, inputs = (48, 64) if divides_outputs else (64, 48)
            codes = random.randint(0, 0x7F, (8, outputs, inputs)).astype(np.uint8)
            codes |= random.randint(0, 2, codes.shape).astype(np.uint8) << 7
            scale = random.uniform(0.001, 0.01, (8, outputs)).astype(np.float32)
            changed[f"{PREFIX}.{meta}"] = codes.swapaxes(1, 2).reshape(-1, outputs).view(np.int8)
            scales[f"{PREFIX}.{number}"] = scale
            values = e4m3(codes).astype(np.float32) * scale[..., None]
            parts.setdefault(ours, []).append(values)
        rewrite(folder, rank, lambda weights, changed=changed: weights.update(changed))
        write_torch_file(folder / f"fp8_scales_{rank}.pt", scales)
    return {
        ours: np.concatenate(parts[ours], axis=1 if divides_outputs else 2)
        for _, _, ours, divides_outputs in FLOAT8_EXPERTS
    }
