"""Computes the bytes of a model's routed experts, layer by layer, and of everything else in it.

From headers, or from a config and a packing. Needs no MLX.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_llama4.config import Config
from mlx_llama4.memory import tensor_bytes
from mlx_llama4.offload.budget import BUFFER_SHARE, MOST_BUFFERS, LayerExperts, least_memory
from mlx_llama4.planning.planner import loaded_bytes
from mlx_llama4.quantization import UNPACKED_BITS, Quantization, packing
from mlx_llama4.tensors import TensorSpec, layer_number, model_tensors, packed_alike

if TYPE_CHECKING:
    from mlx_llama4.checkpoint.matching import Matching

STORED_ITEM_BYTES = 2  # of scales and unpacked weights: `convert` writes 16 bits


@dataclass(frozen=True)
class ExpertWeights:
    """The bytes of a model, for streaming its routed experts."""

    others: int  # bytes in memory of all weights but the routed experts
    per_token: int  # experts that a token takes in each MoE layer
    layers: tuple[LayerExperts, ...]  # the MoE layers
    stored: tuple[int, ...]  # of each MoE layer, bytes on the disk of one expert

    @property
    def count(self) -> int:
        return sum(layer.count for layer in self.layers)

    @property
    def all(self) -> int:
        """Bytes of all routed experts in memory."""
        return sum(layer.count * layer.expert_bytes for layer in self.layers)

    @property
    def stored_all(self) -> int:
        """Bytes of all routed experts on the disk."""
        pairs = zip(self.layers, self.stored, strict=True)
        return sum(layer.count * nbytes for layer, nbytes in pairs)

    @property
    def least_memory(self) -> int:
        return least_memory(self.layers)

    @property
    def most_memory(self) -> int:
        """Bytes that give each expert a slot; more are of no use."""
        slots = self.all + 2 * self.least_memory  # a lane to read into, another to compute with
        return slots + min(slots // (BUFFER_SHARE - 1) + 1, MOST_BUFFERS)

    def kept(self, slots: tuple[int, ...]) -> float:
        """Share of the experts that these slots, of each layer, hold."""
        return sum(slots) / max(self.count, 1)

    def read_bytes(self, slots: tuple[int, ...]) -> float:
        """Bytes read a token with these slots, on average, if all experts are equally likely."""
        rows = zip(self.layers, self.stored, slots, strict=True)
        missing = (nbytes * (1 - held / layer.count) for layer, nbytes, held in rows)
        return self.per_token * sum(missing)


def stored_experts(matching: "Matching", config: Config, dtype_bytes: int) -> ExpertWeights:
    """The bytes of a folder that can run as it is. dtype_bytes: of an unpacked element."""
    layers: dict[int, list[str]] = defaultdict(list)
    others = 0
    for name, spec in matching.specs.items():
        if spec.part == "routed experts":
            layers[layer_number(name)].append(name)
        else:
            others += loaded_bytes(matching.sources[name].tensors, dtype_bytes)
    made, stored = [], []
    for names in layers.values():
        count = matching.specs[names[0]].shape[0]
        # Some sources make two tensors of the model.
        sources = list(dict.fromkeys(matching.sources[name] for name in names))
        tensors = [tensor for source in sources for tensor in source.tensors]
        packing = tuple((tensor.dtype, tensor.shape) for tensor in tensors)
        made.append(LayerExperts(count, loaded_bytes(tensors, dtype_bytes) // count, packing))
        stored.append(sum(tensor.nbytes for tensor in tensors) // count)
    return ExpertWeights(others, config.text.num_experts_per_tok, tuple(made), tuple(stored))


def experts_in_bits(config: Config, bits: int, dtype_bytes: int) -> ExpertWeights:
    """The bytes that `convert --bits` would give. Raises InputError."""
    wanted = None if bits == UNPACKED_BITS else packing(bits, None, None)
    return packed_experts(config, packed_alike(wanted), dtype_bytes)


def packed_experts(
    config: Config,
    quantization_of: Callable[[str, TensorSpec], Quantization | None],
    dtype_bytes: int,
) -> ExpertWeights:
    """The bytes that `quantization_of` gives. dtype_bytes: of an unpacked element."""
    layers: dict[int, dict[str, TensorSpec]] = defaultdict(dict)
    others = 0
    for name, spec in model_tensors(config).items():
        if spec.part == "routed experts":
            layers[layer_number(name)][name] = spec
        else:
            others += tensor_bytes(name, spec, quantization_of(name, spec), dtype_bytes)
    count = config.text.num_local_experts
    made, stored = [], []
    for tensors in layers.values():
        packings = {name: quantization_of(name, spec) for name, spec in tensors.items()}
        in_memory, on_disk = (
            sum(tensor_bytes(name, tensors[name], packings[name], width) for name in tensors)
            for width in (dtype_bytes, STORED_ITEM_BYTES)
        )
        made.append(LayerExperts(count, in_memory // count, tuple(packings.values())))
        stored.append(on_disk // count)
    return ExpertWeights(others, config.text.num_experts_per_tok, tuple(made), tuple(stored))
