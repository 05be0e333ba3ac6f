"""Which tensor gets how many bits."""

from dataclasses import dataclass

from mlx_llama4.quantization import Quantization
from mlx_llama4.tensors import Part, TensorSpec

# The rest stays in 16 bits: the router decides which 70 MB are used at all and weighs
# 160 KB, norms are vectors, and the vision tower is under 2% of the bytes and sees only once
# what the text tower then has to work with.
QUANTIZED_PARTS: frozenset[Part] = frozenset(
    {"embedding", "attention", "routed experts", "shared expert", "dense MLP", "head"}
)


@dataclass(frozen=True)
class Recipe:
    """`dtype` is that of all that is not packed, and of the scales of what is.

    quantization None means that nothing is packed.
    """

    dtype: str
    quantization: Quantization | None

    def of(self, name: str, spec: TensorSpec) -> Quantization | None:
        """How tensor `name` is packed; None: not. A row must divide into whole groups."""
        if self.quantization is None or spec.part not in QUANTIZED_PARTS:
            return None
        if not name.endswith(".weight") or spec.shape[-1] % self.quantization.group_size:
            return None
        return self.quantization
