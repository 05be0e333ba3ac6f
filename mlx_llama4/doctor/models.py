"""Build the models of cases.py in memory, as a conversion and a load would leave them."""

import functools
from collections.abc import Collection

import mlx.core as mx
import numpy as np

from mlx_llama4.checkpoint.layouts import transposed
from mlx_llama4.config import parse_config
from mlx_llama4.doctor.cases import MODELS
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.opening import fill
from mlx_llama4.quantization import Quantization

PACKING = Quantization(group_size=64, bits=4)
# As in conversions, the router is not packed.
PACKED = ("_proj.weight", "lm_head.weight", "embed_tokens.weight")


@functools.cache
def weights(name: str) -> dict[str, np.ndarray]:
    """A model's weights, float32, by their names in an MLX folder."""
    result: dict[str, np.ndarray] = {}
    for key, array in MODELS[name].weights().items():
        if key.endswith("experts.gate_up_proj"):  # [experts, in, 2 · out], gate before up
            prefix = key.removesuffix("gate_up_proj")
            gate, up = np.split(transposed(array), 2, axis=1)
            result |= {f"{prefix}gate_proj.weight": gate, f"{prefix}up_proj.weight": up}
        elif key.endswith("experts.down_proj"):
            result[f"{key}.weight"] = transposed(array)
        else:
            result[key] = array
    return result


def floating(name: str, dtype: mx.Dtype) -> Llama4:
    """The model with weights of `dtype`; all of them are exact in bfloat16."""
    arrays = [(key, mx.array(array).astype(dtype)) for key, array in weights(name).items()]
    return _model(name, arrays)


def packed(name: str, dtype: mx.Dtype) -> Llama4:
    """The same model in 4 bits, except its vision tower."""
    arrays = []
    for key, (weight, scales, biases) in _packed(name).items():
        parts = {"weight": weight, "scales": scales.astype(dtype), "biases": biases.astype(dtype)}
        arrays += [(f"{key}.{part}", array) for part, array in parts.items()]
    arrays += [
        (key, mx.array(array).astype(dtype))
        for key, array in weights(name).items()
        if not is_packed(key)
    ]
    return _model(name, arrays, _packed(name).keys())


def unpacked(name: str) -> Llama4:
    """The model of `packed`, unpacked to float32."""
    arrays = [(key, mx.array(a)) for key, a in weights(name).items() if not is_packed(key)]
    for key, (packed, scales, biases) in _packed(name).items():
        # In float32, or they would round the product.
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        weight = mx.dequantize(packed, scales, biases, PACKING.group_size, PACKING.bits)
        arrays.append((f"{key}.weight", weight))
    return _model(name, arrays)


def _model(name: str, arrays: list[tuple[str, mx.array]], modules: Collection[str] = ()) -> Llama4:
    model = Llama4(parse_config(MODELS[name].config))
    fill(model, arrays, lambda path: PACKING if path in modules else None)
    return model


@functools.cache
def _packed(name: str) -> dict[str, tuple[mx.array, mx.array, mx.array]]:
    """Pack each module's weight; returns weight, scales and biases, which are exact in bfloat16.

    Always computed on the CPU, so that all devices get the same values.
    """
    result = {}
    with mx.stream(mx.cpu):
        for key, array in weights(name).items():
            if is_packed(key):
                weight = mx.array(array).astype(mx.bfloat16)
                packed, scales, biases = mx.quantize(weight, PACKING.group_size, PACKING.bits)
                mx.eval(packed, scales, biases)
                result[key.removesuffix(".weight")] = packed, scales, biases
    return result


def is_packed(name: str) -> bool:
    """Does `packed` pack the tensor of this name in an MLX folder?"""
    return name.startswith("language_model.") and name.endswith(PACKED)


def forget() -> None:
    """Free the memory that a model's checks share."""
    weights.cache_clear()
    _packed.cache_clear()
