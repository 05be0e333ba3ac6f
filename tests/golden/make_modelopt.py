"""Make golden/modelopt: tiny checkpoints as ModelOpt exports them. Run by hand:

    python -m tests.golden.make_modelopt

in an environment with the `reference` extra and nvidia-modelopt 0.47.0 (see README.md). ModelOpt
quantizes transformers' own model with its keys and values, calibrated on random ids, and exports
it. logits.npz: transformers' in float32, of the weights that the stored values stand for.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import numpy as np
import torch
from modelopt.torch.export import export_hf_checkpoint
from modelopt.torch.quantization.qtensor import NVFP4QTensor
from safetensors.torch import load_file, save_file
from transformers import Llama4ForCausalLM

from tests import tiny
from tests.golden import cases
from tests.golden.make_quantized import Tensors

FOLDER = Path(__file__).parent / "modelopt"
RECIPES = {"fp8": mtq.FP8_DEFAULT_CFG, "nvfp4": mtq.NVFP4_DEFAULT_CFG}
KEYS_AND_VALUES = mtq.FP8_KV_CFG["quant_cfg"]


def config() -> dict[str, Any]:
    text = {
        "num_hidden_layers": 2,
        "no_rope_layers": [1, 0],
        "vocab_size": cases.QUANTIZED_VOCABULARY,
        "num_local_experts": 4,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    return tiny.text_only(tiny.config("maverick", **text))


def model(weights: dict[str, np.ndarray], dtype: torch.dtype) -> Llama4ForCausalLM:
    with tempfile.TemporaryDirectory() as folder:
        tiny.write_checkpoint(Path(folder), config(), weights)
        found, info = Llama4ForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
        )
    problems = {key: value for key, value in info.items() if value}
    assert not problems, problems
    return found.eval()


def export(name: str) -> Path:
    ids = np.random.RandomState(41).randint(0, cases.QUANTIZED_VOCABULARY, (1, 40))
    recipe = RECIPES[name] | {"quant_cfg": [*RECIPES[name]["quant_cfg"], *KEYS_AND_VALUES]}
    quantized = mtq.quantize(
        model(tiny.tensors(config()), torch.bfloat16),
        recipe,
        lambda module: module(input_ids=torch.tensor(ids)),
    )
    folder = FOLDER / name
    with tempfile.TemporaryDirectory() as temporary:
        export_hf_checkpoint(quantized, export_dir=temporary)
        exported = Path(temporary)
        tensors = load_file(exported / "model.safetensors")
        assert sum(key.endswith(("k_scale", "v_scale")) for key in tensors) == 4
        folder.mkdir(parents=True)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        table = json.loads((exported / "config.json").read_text())["quantization_config"]
        shutil.copy(exported / "hf_quant_config.json", folder)
    with_table = config() | {"quantization_config": table}
    (folder / "config.json").write_text(json.dumps(with_table, indent=1) + "\n")
    return folder


def decoded(tensors: Tensors) -> Tensors:
    """The float32 weights that the stored values stand for."""
    result: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith(("scale", "scale_2")):
            continue
        scale = tensors.get(f"{name}_scale", tensors.get(f"{name}_weight_scale"))
        if scale is None:
            result[name] = tensor.float()
        elif tensor.dtype == torch.float8_e4m3fn:
            result[name] = tensor.float() * scale
        else:
            whole = tensors.get(f"{name}_scale_2", tensors.get(f"{name}_weight_scale_2"))
            turn = (lambda one: one.transpose(1, 2)) if tensor.ndim == 3 else (lambda one: one)
            packed = turn(tensor).contiguous()
            shape = torch.Size([*packed.shape[:-1], 2 * packed.shape[-1]])
            result[name] = turn(
                NVFP4QTensor(shape, torch.float32, packed).dequantize(
                    scale=turn(scale).contiguous(), double_scale=whole, block_sizes={-1: 16}
                )
            ).contiguous()
    return result


def main() -> None:
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    shutil.rmtree(FOLDER, ignore_errors=True)
    result = {}
    for name in RECIPES:
        folder = export(name)
        weights = decoded(load_file(folder / "model.safetensors"))
        exact = model({key: value.numpy() for key, value in weights.items()}, torch.float32)
        result[name] = exact(input_ids=torch.tensor(cases.quantized_ids())).logits[0].numpy()
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{name}: {size:,} bytes, logit std {result[name].std():.2f}")
    np.savez_compressed(FOLDER / "logits.npz", **result)


if __name__ == "__main__":
    main()
