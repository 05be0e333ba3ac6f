"""The one seam between the model and its experts' weights.

Resident, quantized, streamed and sharded experts differ here and nowhere else.

Shapes: N routed inputs, D hidden size.
"""

from typing import Protocol

import mlx.core as mx
from mlx import nn

from mlx_llama4.model.feed_forward import gated
from mlx_llama4.quantization import Quantization

# From this many routed inputs on, they are sorted by expert, so that each expert's weights are
# read once and its inputs form one matmul.
SORT_FROM = 64


class RoutedExperts(Protocol):
    """What a mixture of experts calls: `Experts`, or something that takes their place."""

    def __call__(self, x: mx.array, experts: mx.array, meanwhile: mx.array, /) -> mx.array:
        """x [N, D], experts int [N] → [N, D].

        meanwhile: what the caller needs besides and does not depend on the experts, so that it can
        be computed while experts are read.
        """
        ...


class ExpertLinear(nn.Module):
    """One linear layer per expert; each row of the input goes through the expert it names."""

    def __init__(self, weight: mx.array):
        super().__init__()
        self.weight = weight  # [experts, out, in]

    def __call__(self, x: mx.array, experts: mx.array, is_sorted: bool) -> mx.array:
        """x [N, 1, in], experts int [N] → [N, 1, out]; `is_sorted` promises ascending experts."""
        return mx.gather_mm(
            x, self.weight.swapaxes(-1, -2), rhs_indices=experts, sorted_indices=is_sorted
        )

    def to_quantized(self, group_size: int, bits: int, mode: str) -> "QuantizedExpertLinear":
        """The packed layer; the name and arguments are those nn.quantize calls."""
        quantization = Quantization(group_size, bits, mode)
        return QuantizedExpertLinear(
            quantization, *mx.quantize(self.weight, group_size, bits, mode)
        )


class QuantizedExpertLinear(nn.Module):
    """ExpertLinear on packed weights.

    The scales' dtype must be the input's, or every call would cast the scales of every expert;
    opening.py sees to it. Frozen, as nn.QuantizedLinear is: packed codes have no gradient, though
    the input has one.
    """

    def __init__(
        self,
        quantization: Quantization,
        weight: mx.array,
        scales: mx.array,
        biases: mx.array | None = None,
    ):
        super().__init__()
        self.quantization = quantization
        self.weight = weight  # uint32 [experts, out, in · bits / 32]
        self.scales = scales  # [experts, out, in / group_size]
        self.biases = biases  # as the scales; None in the modes other than affine
        self.freeze()

    def __call__(self, x: mx.array, experts: mx.array, is_sorted: bool) -> mx.array:
        return mx.gather_qmm(
            x,
            self.weight,
            self.scales,
            self.biases,
            rhs_indices=experts,
            transpose=True,
            group_size=self.quantization.group_size,
            bits=self.quantization.bits,
            mode=self.quantization.mode,
            sorted_indices=is_sorted,
        )


class Experts(nn.Module):
    """The routed experts' gated MLPs, stacked. Streamed experts take its place."""

    def __init__(
        self,
        gate_proj: ExpertLinear | QuantizedExpertLinear,
        up_proj: ExpertLinear | QuantizedExpertLinear,
        down_proj: ExpertLinear | QuantizedExpertLinear,
    ):
        super().__init__()
        self.gate_proj = gate_proj
        self.up_proj = up_proj
        self.down_proj = down_proj

    def __call__(self, x: mx.array, experts: mx.array, meanwhile: mx.array) -> mx.array:
        """As RoutedExperts; these are in memory, so `meanwhile` is not used."""
        if experts.size < SORT_FROM:
            return self.compute(x, experts, is_sorted=False)
        order = mx.argsort(experts)
        return self.compute(x[order], experts[order], is_sorted=True)[mx.argsort(order)]

    def compute(self, x: mx.array, experts: mx.array, is_sorted: bool) -> mx.array:
        """As the call, in the order given; `is_sorted` promises ascending experts."""
        x = x[:, None]  # [N, 1, D]
        gate = self.gate_proj(x, experts, is_sorted)
        up = self.up_proj(x, experts, is_sorted)
        return self.down_proj(gated(gate, up), experts, is_sorted)[:, 0]


def empty_experts(num_experts: int, hidden_size: int, intermediate_size: int) -> Experts:
    """Lazy experts of zeros, whose weights are loaded later."""
    inner = mx.zeros((num_experts, intermediate_size, hidden_size))
    outer = mx.zeros((num_experts, hidden_size, intermediate_size))
    return Experts(ExpertLinear(inner), ExpertLinear(inner), ExpertLinear(outer))
