"""Models of known sizes with random weights, for all subjects that run one.

They are packed in 4 bits, groups of 64. What is not packed is bfloat16 on a GPU and float32 on
MLX's CPU backend, whose kernels for 16 bits are ten times slower. All engines load them.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from benchmarks.harness.random_model import (
    packing_of,
    plan_weights,
    recipe_of,
    scaled_release,
    write_random_model,
)
from mlx_llama4.cli.console import terminal
from mlx_llama4.config import parse_config
from mlx_llama4.errors import InputError
from mlx_llama4.planning.machine import this_machine
from mlx_llama4.units import human_bytes

BITS, GROUP_SIZE = 4, 64
# Memory beside the weights, for caches, activations and the interpreter.
SPARE_SHARE = 0.1
# Ids below are plain text in every model that benchmarks write.
PLAIN_IDS = 1000


class Preset(StrEnum):
    tiny = "tiny"
    small = "small"
    scout_layer = "scout-layer"
    maverick_layer = "maverick-layer"
    scout = "scout"
    maverick = "maverick"


# Heads of 88 and tiles of 336 pixels, as in the releases' vision tower.
SMALL_VISION = {
    "hidden_size": 176,
    "intermediate_size": 704,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "projector_input_dim": 256,
    "projector_output_dim": 256,
    "vision_output_dim": 256,
}


@dataclass(frozen=True)
class _Shape:
    """What a preset changes in a release's config.json."""

    release: str
    layers: int | None = None  # None keeps all 48
    text: tuple[tuple[str, int], ...] = ()
    small_vision: bool = False


_SHAPES = {
    # A prefill computes only keys and values in the last layer. So of five layers, three chunked
    # ones and a global one do all their work, which is the releases' mix.
    Preset.tiny: _Shape(
        "scout",
        layers=5,
        text=(
            ("hidden_size", 320),
            ("intermediate_size", 512),
            ("intermediate_size_mlp", 1024),
            ("num_attention_heads", 5),
            ("num_key_value_heads", 1),
            ("head_dim", 64),
            ("vocab_size", 3072),
            ("attention_chunk_size", 256),
            ("floor_scale", 256),
        ),
        small_vision=True,
    ),
    Preset.small: _Shape(
        "scout",
        layers=8,
        text=(
            ("hidden_size", 512),
            ("intermediate_size", 1024),
            ("intermediate_size_mlp", 2048),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 2),
            ("head_dim", 64),
            ("num_local_experts", 32),
            ("vocab_size", 4096),
        ),
        small_vision=True,
    ),
    # A global layer after three chunked ones; of Maverick's four, two have experts.
    Preset.scout_layer: _Shape("scout", layers=4),
    Preset.maverick_layer: _Shape("maverick", layers=4),
    Preset.scout: _Shape("scout"),
    Preset.maverick: _Shape("maverick"),
}


def check_preset(name: str) -> None:
    """Raises InputError if there is no such preset."""
    if name not in list(Preset):
        raise InputError(f"--preset {name}: choose of {', '.join(Preset)}")


def preset_config(name: str) -> dict[str, Any]:
    """config.json of a preset. Raises InputError if there is no such preset."""
    check_preset(name)
    shape = _SHAPES[Preset(name)]
    raw = scaled_release(
        shape.release, layers=shape.layers, vocabulary=dict(shape.text).get("vocab_size")
    )
    raw["text_config"] |= dict(shape.text)
    if shape.small_vision:
        raw["vision_config"] |= SMALL_VISION
    return raw


def preset_folder(name: str, folder: Path) -> Path:
    """Write a preset's model into `folder` under its name; returns where it is.

    Raises InputError if there is no such preset or memory cannot hold its weights, OutputError if
    the disk cannot or the model is there already.
    """
    raw = preset_config(name)
    packing = packing_of(BITS)
    recipe = recipe_of(packing, packing, unpacked_dtype())
    needed = plan_weights(parse_config(raw), recipe).output_bytes * (1 + SPARE_SHARE)
    if needed > (memory := weight_memory()):
        raise InputError(
            f"--preset {name}: it needs {human_bytes(needed)} of memory and there are "
            f"{human_bytes(memory)}; choose a smaller one"
        )
    with terminal.status("Writing the model"):
        write_random_model(folder / name, raw, recipe)
    return folder / name


def unpacked_dtype() -> str:
    """The dtype of activations, scales and weights that are not packed, for all engines."""
    import mlx.core as mx

    return "float32" if mx.default_device() == mx.cpu else "bfloat16"


def weight_memory() -> int:
    """Bytes of weights that the device in use can hold."""
    import mlx.core as mx

    machine = this_machine()
    if machine.has_gpu or mx.default_device() == mx.cpu:
        return machine.usable
    # CUDA: weights are in the card's memory.
    return int(mx.device_info(mx.gpu)["total_memory"])
