"""The one seam between the model and its experts' weights.

Resident, quantized, streamed and sharded experts differ here and nowhere else.
"""

import mlx.core as mx
from mlx import nn

from mlx_llama4.quantization import Quantization


class ExpertLinear(nn.Module):
    """One linear layer per expert; each row of the input goes through the expert it names.

    weight: [experts, out, in]
    """

    def __init__(self, num_experts: int, input_size: int, output_size: int):
        super().__init__()
        self.weight = mx.zeros((num_experts, output_size, input_size))

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

    weight: uint32 [experts, out, in · bits / 32]; scales and, in affine mode, biases:
    [experts, out, in / group_size]. Their dtype must be that of the input, or every call would
    cast the scales of every expert; load.py sees to it.
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
        self.weight = weight
        self.scales = scales
        self.biases = biases

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
