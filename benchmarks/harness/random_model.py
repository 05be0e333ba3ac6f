"""Model folders of any size with random weights.

They are packed as a conversion would leave them and written as fast as the disk takes them: one
block of random rows is drawn and packed for each width, and a tensor is made of pieces of it from
random places.
"""

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.random_tokenizer import (
    LEAST_VOCABULARY,
    generation_config,
    patch_id,
    random_tokenizer_files,
)
from mlx_llama4.config import Config, parse_config
from mlx_llama4.errors import InputError
from mlx_llama4.planning.releases import RELEASES, release_json
from mlx_llama4.quantization import Quantization
from mlx_llama4.tensors import TensorSpec, model_tensors

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_llama4.convert.plan import Plan
    from mlx_llama4.convert.recipes import Recipe
    from mlx_llama4.convert.write import FolderWriter

BLOCK_WEIGHTS = 4 * 2**20
SCALES = (1, 2, 4, 8, 16)
ROUTED_EXPERTS = "*.feed_forward.experts.*"
VISION_WIDTHS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "projector_input_dim",
    "projector_output_dim",
    "vision_output_dim",
)
# The router's choice depends on the order of its logits alone, so they should differ clearly.
ROUTER_GAIN = 2.0


def scaled_release(
    preset: str,
    scale: int = 1,
    layers: int | None = None,
    experts: int | None = None,
    vocabulary: int | None = None,
    text_only: bool = False,
) -> dict[str, Any]:
    """config.json of a release with all widths divided by `scale`; None keeps its own numbers.

    Heads keep their widths while there are several to divide. The vision tower loses as large a
    share of its layers as the text tower. Raises InputError.
    """
    if preset not in RELEASES:
        raise InputError(f"--preset {preset}: choose of {', '.join(RELEASES)}")
    if scale not in SCALES:
        raise InputError(f"--scale {scale}: choose of {', '.join(map(str, SCALES))}")
    raw = copy.deepcopy(release_json(preset))
    text, vision = raw["text_config"], raw["vision_config"]
    if layers is not None:
        share = layers / text["num_hidden_layers"]
        vision["num_hidden_layers"] = max(round(vision["num_hidden_layers"] * share), 1)
    for key in VISION_WIDTHS:
        vision[key] //= scale
    for key in ("hidden_size", "intermediate_size", "intermediate_size_mlp"):
        text[key] //= scale
    key_value_heads = max(text["num_key_value_heads"] // scale, 1)
    text["head_dim"] = text["hidden_size"] // (5 * key_value_heads)
    text["num_attention_heads"] = 5 * key_value_heads
    text["num_key_value_heads"] = key_value_heads
    given = {
        "num_hidden_layers": layers,
        "num_local_experts": experts,
        "vocab_size": vocabulary,
    }
    text |= {key: value for key, value in given.items() if value is not None}
    raw["image_token_index"] = patch_id(text["vocab_size"])
    if text_only:
        del raw["vision_config"], raw["image_token_index"]
    return raw


def packing_of(bits: int) -> Quantization | None:
    """The packing of this many bits in groups of 64; None for 16. Raises InputError."""
    from mlx_llama4.quantization import UNPACKED_BITS, packing

    return None if bits == UNPACKED_BITS else packing(bits, None, None)


def recipe_of(experts: Quantization | None, rest: Quantization | None, dtype: str) -> "Recipe":
    """A recipe for routed experts and the rest. dtype: of what is not packed."""
    from mlx_llama4.convert.recipes import Recipe, Rule

    return Recipe(dtype, rest, rules=(Rule(ROUTED_EXPERTS, experts),))


def write_random_model(
    out: Path,
    raw: dict[str, Any],
    recipe: "Recipe",
    *,
    seed: int = 0,
    shard_bytes: int | None = None,
) -> int:
    """Write the folder of config.json `raw` as `recipe` packs it; returns bytes of its tensors.

    Weights are normal with mean 0 and variance 1 / inputs, so that activations keep their size.
    Memory stays under 400 MB. Raises OutputError if `out` exists or the disk has no room,
    InputError for a vocabulary too small for a tokenizer.
    """
    from mlx_llama4.convert.config_json import mlx_config
    from mlx_llama4.convert.write import MAX_SHARD_BYTES, FolderWriter, check_destination

    config = parse_config(raw)
    plan = plan_weights(config, recipe)
    check_destination(out, plan.output_bytes)
    files = _side_files(config) | {"config.json": json.dumps(mlx_config(raw, config, plan))}
    with FolderWriter(out, plan.outputs, shard_bytes=shard_bytes or MAX_SHARD_BYTES) as writer:
        for name, text in files.items():
            writer.write_text(name, text)
        weights = _Weights(plan, writer, seed)
        for name in plan.specs:
            weights.write(name)
        writer.finish()
    return plan.output_bytes


def plan_weights(config: Config, recipe: "Recipe") -> "Plan":
    """What is written: a conversion's plan without a source."""
    from mlx_llama4.convert.plan import Plan, stored_parts

    specs = model_tensors(config)
    packings = {name: recipe.of(name, spec) for name, spec in specs.items()}
    parts = {
        name: stored_parts(name, spec, packings[name], recipe.dtype) for name, spec in specs.items()
    }
    return Plan(recipe, specs, packings, parts, jobs=[])


def _side_files(config: Config) -> dict[str, str]:
    from mlx_llama4.checkpoint.meta.params import json_files

    vocabulary = config.text.vocab_size
    if vocabulary < LEAST_VOCABULARY:
        raise InputError(f"a vocabulary of {vocabulary}: the tokenizer needs {LEAST_VOCABULARY}")
    files = json_files(config) | {"generation_config.json": generation_config(vocabulary)}
    texts = {name: json.dumps(contents, indent=2) for name, contents in files.items()}
    return texts | random_tokenizer_files(vocabulary)


Rows = dict[str, np.ndarray]  # part of a tensor → bytes, uint8 [rows, row bytes]


@dataclass(frozen=True)
class _Block:
    """Random rows of one width."""

    parts: Rows  # suffix of the stored tensor's name → its rows

    @cached_property
    def rows(self) -> int:
        return len(next(iter(self.parts.values())))

    def pieces(self, rows: int, random: np.random.Generator) -> Iterator[Rows]:
        """`rows` rows in pieces of at most half the block, each from a random place."""
        longest = max(self.rows // 2, 1)
        for done in range(0, rows, longest):
            count = min(longest, rows - done)
            start = int(random.integers(self.rows - count + 1))
            yield {part: block[start : start + count] for part, block in self.parts.items()}


class _Weights:
    """Writes the tensors of a plan."""

    def __init__(self, plan: "Plan", writer: "FolderWriter", seed: int):
        self._plan = plan
        self._writer = writer
        self._random = np.random.default_rng(seed)
        self._blocks: dict[tuple[int, float, Quantization | None], _Block] = {}

    def write(self, name: str) -> None:
        spec, parts = self._plan.specs[name], self._plan.parts[name]
        if len(spec.shape) == 1:
            self._writer.write(name, 0, self._vector(name, spec))
            return
        width = spec.shape[-1]
        block = self._block(width, _deviation(name, spec), self._plan.packings[name])
        # The writer counts rows of the first axis, which are the experts of a stacked tensor.
        inner = math.prod(spec.shape[1:-1])
        step = max(block.rows // 2 // inner, 1)
        for row in range(0, spec.shape[0], step):
            count = min(step, spec.shape[0] - row)
            pieces = list(block.pieces(count * inner, self._random))
            for part in parts:
                suffix = part.rpartition(".")[2] if len(parts) > 1 else ""
                data = np.concatenate([piece[suffix] for piece in pieces])
                self._writer.write(part, row, data.data.cast("B"))

    def _vector(self, name: str, spec: TensorSpec) -> bytes:
        """Norms multiply by 1; biases add nothing."""
        value = 1.0 if "norm" in name and name.endswith(".weight") else 0.0
        return self._bytes(np.full((1, *spec.shape), value, np.float32)).tobytes()

    def _block(self, width: int, deviation: float, packing: Quantization | None) -> _Block:
        key = (width, deviation, packing)
        if key not in self._blocks:
            shape = (max(BLOCK_WEIGHTS // width, 2), width)
            drawn = self._random.standard_normal(shape, np.float32) * np.float32(deviation)
            self._blocks[key] = _Block(self._pack(drawn, packing))
        return self._blocks[key]

    def _pack(self, weights: np.ndarray, packing: Quantization | None) -> Rows:
        import mlx.core as mx

        if packing is None:
            return {"": self._bytes(weights)}
        array = mx.array(weights).astype(self._dtype)
        packed = mx.quantize(array, packing.group_size, packing.bits, packing.mode)
        suffixes = ("weight", "scales", "biases")
        return {suffix: _as_bytes(part) for suffix, part in zip(suffixes, packed, strict=False)}

    def _bytes(self, weights: np.ndarray) -> np.ndarray:
        import mlx.core as mx

        return _as_bytes(mx.array(weights).astype(self._dtype))

    @property
    def _dtype(self) -> "mx.Dtype":
        import mlx.core as mx

        return getattr(mx, self._plan.recipe.dtype)


def _as_bytes(array: "mx.array") -> np.ndarray:
    """[rows, …] → uint8 [rows, row bytes]"""
    import mlx.core as mx

    return np.array(array.view(mx.uint8))


def _deviation(name: str, spec: TensorSpec) -> float:
    if spec.part == "embedding":
        return 1.0
    gain = ROUTER_GAIN if spec.part == "router" else 1.0
    return gain / math.sqrt(spec.shape[-1])
