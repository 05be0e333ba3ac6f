"""Make golden/quantized: tiny checkpoints in the formats of quantized releases. Run by hand:

    python -m tests.golden.make_quantized [NAME …]

in an environment with the `reference` extra and compressed-tensors 0.20.0 (see README.md). The
compressors of compressed-tensors write the modules, block-wise FP8 the formula of transformers'
`fine-grained fp8`, which has no writer of its own. logits.npz: transformers' in float32, of the
weights that the stored values stand for.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.functional import dequantize_blockwise, quantize_4bit
from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
from compressed_tensors.compressors.naive_quantized.base import FloatQuantizationCompressor
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import save_file

from tests import tiny
from tests.golden import cases

FOLDER = Path(__file__).parent / "quantized"
LARGEST_E4M3 = 448.0
BLOCK = (128, 128)

NAMES = {True: "float-quantized", False: "pack-quantized"}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Format:
    """ignored: parts of the names of linear layers that stay in bfloat16, beside router and head.
    weights: arguments of compressed-tensors; None for block-wise FP8.
    """

    preset: str
    weights: dict[str, Any] | None
    ignored: tuple[str, ...] = ()
    scale_dtype: torch.dtype = torch.bfloat16
    text: dict[str, Any] = field(default_factory=dict)
    vision: bool = False


FLOAT8 = {"num_bits": 8, "type": "float"}
FLOAT4 = {"num_bits": 4, "type": "float"}
INT4 = {"num_bits": 4, "type": "int"}
INT8 = {"num_bits": 8, "type": "int"}
GROUP = {"strategy": "group"}
FORMATS = {
    # As the releases: experts alone.
    "fp8_channel": Format(
        "scout",
        FLOAT8 | {"strategy": "channel"},
        ("self_attn",),
        text={"intermediate_size": 64},
        vision=True,
    ),
    "fp8_tensor": Format(
        "maverick",
        FLOAT8 | {"strategy": "tensor"},
        scale_dtype=torch.float32,
        text={"intermediate_size": 64},
    ),
    "fp8_block": Format(
        "maverick",
        None,
        scale_dtype=torch.float32,
        text={"hidden_size": 136, "intermediate_size": 64, "num_local_experts": 2},
    ),
    "int4_group32": Format("scout", INT4 | GROUP | {"group_size": 32}, ("self_attn",)),
    "int4_group64_zero_points": Format(
        "scout",
        INT4 | GROUP | {"group_size": 64, "symmetric": False},
        text={"intermediate_size": 128},
    ),
    "int4_group128": Format(
        "maverick",
        INT4 | GROUP | {"group_size": 128},
        text={
            "hidden_size": 128,
            "head_dim": 32,
            "intermediate_size": 128,
            "intermediate_size_mlp": 128,
            "num_local_experts": 2,
        },
    ),
    "int8_channel": Format("scout", INT8 | {"strategy": "channel"}, text={"intermediate_size": 64}),
    "nvfp4": Format("scout", FLOAT4 | {"strategy": "tensor_group", "group_size": 16}),
    # As unsloth publishes: the scales are quantized, too.
    "nf4": Format("scout", {"type": "nf4"}, ("self_attn",), text={"num_local_experts": 2}),
    "mxfp4": Format("maverick", FLOAT4 | GROUP | {"group_size": 32}),
}


def config_of(name: str) -> dict[str, Any]:
    form = FORMATS[name]
    text = {
        "num_hidden_layers": 2,
        "no_rope_layers": [1, 0],
        "vocab_size": cases.QUANTIZED_VOCABULARY,
        "num_local_experts": 4,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    config = tiny.config(form.preset, **(text | form.text))
    config["image_token_index"] = cases.QUANTIZED_VOCABULARY - 1
    config["vision_config"]["num_hidden_layers"] = 1
    return config if form.vision else tiny.text_only(config)


def one_by_one(weights: dict[str, np.ndarray]) -> Tensors:
    """The releases' stacked experts as modules of their own, [out, in], as quantizers need them."""
    result: Tensors = {}
    for name, array in weights.items():
        tensor = torch.from_numpy(array)
        stem, _, kind = name.rpartition(".experts.")
        if not stem:
            result[name] = tensor
            continue
        for index, expert in enumerate(tensor):
            parts = {"down_proj": expert}
            if kind == "gate_up_proj":
                parts = dict(zip(("gate_proj", "up_proj"), expert.chunk(2, -1), strict=True))
            for part, matrix in parts.items():
                result[f"{stem}.experts.{index}.{part}.weight"] = matrix.T.contiguous()
    return result


def stacked(weights: Tensors) -> Tensors:
    """And back."""
    result: Tensors = {}
    experts: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in weights.items():
        stem, _, rest = name.rpartition(".experts.")
        if stem:
            index, part, _ = rest.split(".")
            experts.setdefault(f"{stem}.experts.{part}", {})[int(index)] = tensor.T
        else:
            result[name] = tensor
    for name in [name for name in experts if name.endswith("gate_proj")]:
        up = experts.pop(name.replace("gate_proj", "up_proj"))
        gate_up = {i: torch.cat([one, up[i]], -1) for i, one in experts.pop(name).items()}
        experts[name.replace("gate_proj", "gate_up_proj")] = gate_up
    for name, parts in experts.items():
        result[name] = torch.stack([parts[index] for index in range(len(parts))])
    return result


def is_quantized(name: str, tensor: torch.Tensor, form: Format) -> bool:
    kept = ("router", "lm_head", "embed_tokens", "vision", "multi_modal", *form.ignored)
    return name.endswith(".weight") and tensor.ndim == 2 and not any(one in name for one in kept)


def compressed(weight: torch.Tensor, form: Format) -> tuple[Tensors, torch.Tensor]:
    """What compressed-tensors stores for a weight, and the float32 weight that it stands for."""
    args = QuantizationArgs(**form.weights)
    groups = {"tensor": weight.reshape(1, 1, -1), "channel": weight[:, None]}.get(
        args.strategy, weight.reshape(len(weight), -1, args.group_size or 1)
    )
    scale, zero_point = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    scale = scale.to(form.scale_dtype)
    if args.strategy == "tensor":
        scale, zero_point = scale.reshape(1), zero_point.reshape(1)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero_point}
    if not args.symmetric:
        state["weight_zero_point"] = zero_point.round().to(torch.int8)
    compressor = FloatQuantizationCompressor if args.type == "float" else (
        PackedQuantizationCompressor
    )  # fmt: skip
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    stored = compressor.compress(state, scheme)
    # The scale in float32, since the product has more digits than bfloat16 holds.
    exact = stored | {"weight_scale": scale.float()}
    return stored, compressor.decompress(exact, scheme)["weight"].float()


def in_fp4(weight: torch.Tensor, form: Format) -> tuple[Tensors, torch.Tensor]:
    """The same for nvfp4 and mxfp4."""
    is_nv = form.weights["strategy"] == "tensor_group"
    args = QuantizationArgs(
        **form.weights, scale_dtype=torch.float8_e4m3fn if is_nv else torch.uint8
    )
    whole = generate_gparam(weight.amin(), weight.amax()).reshape(1) if is_nv else None
    groups = weight.reshape(len(weight), -1, args.group_size)
    scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), args, whole)
    state = {"weight": weight, "weight_scale": scale.float()}
    if whole is not None:
        state["weight_global_scale"] = whole
    compressor = NVFP4PackedCompressor if is_nv else MXFP4PackedCompressor
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    stored = compressor.compress(state, scheme)
    scale = compressor._decompress_scale(stored["weight_scale"], torch.float32)
    codes = unpack_fp4_from_uint8(stored["weight_packed"], *weight.shape, torch.float32)
    exact = dequantize(codes, scale, args=args, global_scale=whole, dtype=torch.float32)
    return stored, exact


def in_nf4(weight: torch.Tensor, form: Format) -> tuple[Tensors, torch.Tensor]:
    """The same for bitsandbytes. It decodes by its generic formula: its kernel for the CPU begins
    a block of scales with each row, which is wrong for rows of 96.
    """
    codes, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    parts = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
    exact = _dequantize_4bit_compute(
        codes.reshape(-1), scales, state.code, state.blocksize, weight.shape, torch.float32
    )
    return {"weight": codes} | parts, exact


def in_blocks(weight: torch.Tensor, form: Format) -> tuple[Tensors, torch.Tensor]:
    """The same for block-wise FP8: codes, and the reciprocal of the scale that made them."""
    rows, columns = (-(-size // block) for size, block in zip(weight.shape, BLOCK, strict=True))
    scales = torch.empty(rows, columns, dtype=form.scale_dtype)
    codes, exact = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(weight.shape)
    for row in range(rows):
        for column in range(columns):
            block = tuple(
                slice(index * size, (index + 1) * size)
                for index, size in zip((row, column), BLOCK, strict=True)
            )
            scale = LARGEST_E4M3 / weight[block].abs().max()
            codes[block] = (weight[block] * scale).to(torch.float8_e4m3fn)
            scales[row, column] = 1 / scale
            exact[block] = codes[block].float() * scales[row, column]
    return {"weight": codes, "weight_scale_inv": scales}, exact


def quantization_config(name: str, form: Format, ignored: list[str]) -> dict[str, Any]:
    if form.weights is None:
        return {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": list(BLOCK),
            "modules_to_not_convert": ignored,
        }
    if form.weights["type"] == "nf4":
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
            "llm_int8_skip_modules": ignored,
        }
    is_float = form.weights["type"] == "float"
    is_fp4 = is_float and form.weights["num_bits"] == 4
    args = QuantizationArgs(**form.weights)
    token = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True)
    group = {
        "input_activations": token.model_dump(mode="json") if is_float and not is_fp4 else None,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": args.model_dump(mode="json"),
    }
    return {
        "config_groups": {"group_0": group},
        "format": f"{name}-pack-quantized" if is_fp4 else NAMES[is_float],
        "ignore": ignored,
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def write(name: str) -> tuple[dict[str, Any], Tensors]:
    """The folder; its config without quantization, and the weights that it stands for."""
    form, config = FORMATS[name], config_of(name)
    quantize: Callable[[torch.Tensor, Format], tuple[Tensors, torch.Tensor]]
    quantize = in_blocks if form.weights is None else compressed
    if form.weights == {"type": "nf4"}:
        quantize = in_nf4
    elif form.weights and form.weights["type"] == "float" and form.weights["num_bits"] == 4:
        quantize = in_fp4
    stored: Tensors = {}
    exact: Tensors = {}
    ignored: list[str] = []
    for key, weight in one_by_one(tiny.tensors(config)).items():
        module = key.removesuffix(".weight")
        if not is_quantized(key, weight, form):
            stored[key], exact[key] = weight.to(torch.bfloat16), weight
            if weight.ndim == 2:
                ignored.append(module)
            continue
        parts, exact[key] = quantize(weight, form)
        stored.update({f"{module}.{part}": tensor for part, tensor in parts.items()})
    folder = FOLDER / name
    folder.mkdir(parents=True)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with_table = config | {"quantization_config": quantization_config(name, form, ignored)}
    (folder / "config.json").write_text(json.dumps(with_table, indent=1) + "\n")
    return config, exact


def logits(config: dict[str, Any], weights: Tensors) -> np.ndarray:
    from transformers import Llama4ForCausalLM, Llama4ForConditionalGeneration

    kind = Llama4ForConditionalGeneration if "vision_config" in config else Llama4ForCausalLM
    arrays = {name: tensor.numpy() for name, tensor in stacked(weights).items()}
    with tempfile.TemporaryDirectory() as folder:
        tiny.write_checkpoint(Path(folder), config, arrays)
        model, info = kind.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    problems = {key: value for key, value in info.items() if value}
    assert not problems, problems
    return model.eval()(input_ids=torch.tensor(cases.quantized_ids())).logits[0].numpy()


def main() -> None:
    torch.set_grad_enabled(False)
    wanted = sys.argv[1:] or cases.QUANTIZED
    result = dict(np.load(FOLDER / "logits.npz")) if sys.argv[1:] else {}
    for name in wanted:
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        result[name] = logits(*write(name))
        size = sum(path.stat().st_size for path in (FOLDER / name).iterdir())
        print(f"{name}: {size:,} bytes, logit std {result[name].std():.2f}")
    np.savez_compressed(FOLDER / "logits.npz", **result)


if __name__ == "__main__":
    main()
