"""4-bit weights by bitsandbytes, as unsloth and others publish them."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.convert.run import convert
from mlx_llama4.errors import CheckpointError, RunError
from mlx_llama4.planning.inspection import inspect_folder
from tests.checkpoint.quantized import QUANTIZED
from tests.checkpoint.test_source_formats import PLAIN, same, stored_weights
from tests.convert.folders import arrays
from tests.raw_safetensors import Raw, float32, read_raw, write_raw

SOURCE = QUANTIZED / "nf4"
WEIGHT = "model.layers.0.feed_forward.shared_expert.up_proj.weight"
STATE = f"{WEIGHT}.quant_state.bitsandbytes__nf4"
Tensors = dict[str, Raw]


def stored() -> Tensors:
    return read_raw(SOURCE / "model.safetensors")


def written(folder: Path, tensors: Tensors) -> Path:
    source = Path(shutil.copytree(SOURCE, folder))
    write_raw(source / "model.safetensors", tensors)
    return source


def test_experts_in_lists_by_projection(tmp_path: Path) -> None:
    """`experts.gate_projs.0`, as fine-tuners' linear experts are called."""
    tensors = {}
    for name, tensor in stored().items():
        stem, found, rest = name.partition(".experts.")
        if found:
            index, projection, part = rest.split(".", 2)
            name = f"{stem}.experts.{projection}s.{index}.{part}"
        tensors[name] = tensor
    convert(written(tmp_path / "source", tensors), tmp_path / "out", PLAIN)
    convert(SOURCE, tmp_path / "plain", PLAIN)
    assert same(tmp_path / "out", tmp_path / "plain")


def test_scales_that_are_not_quantized(tmp_path: Path) -> None:
    """Without double quantization, `absmax` is float32."""
    tensors = stored()
    for name in [name for name in tensors if name.endswith(".absmax")]:
        weight = name.removesuffix(".absmax")
        key = f"{weight}.quant_state.bitsandbytes__nf4"
        state = json.loads(tensors[key].data.tobytes())
        factors = tensors.pop(f"{weight}.nested_absmax").floats()
        numbers = tensors.pop(f"{weight}.nested_quant_map").floats()
        scales = numbers[tensors[name].data] * factors.repeat(256)[: tensors[name].data.size]
        tensors[name] = float32(scales + np.float32(state.pop("nested_offset")))
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        tensors[key] = Raw("U8", text.shape, text)
    convert(written(tmp_path / "source", tensors), tmp_path / "out", PLAIN)
    found, expected = arrays(tmp_path / "out"), stored_weights(SOURCE)
    assert [key for key in expected if not mx.array_equal(found[key], expected[key])] == []


def test_fp4_is_another_table(tmp_path: Path) -> None:
    tensors = {name.replace("__nf4", "__fp4"): tensor for name, tensor in stored().items()}
    for name in [name for name in tensors if name.endswith("__fp4")]:
        text = tensors[name].data.tobytes().replace(b"nf4", b"fp4")
        tensors[name] = Raw("U8", (len(text),), np.frombuffer(text, np.uint8))
    convert(written(tmp_path / "source", tensors), tmp_path / "out", PLAIN)
    found, expected = arrays(tmp_path / "out"), stored_weights(SOURCE)
    key = f"language_model.{WEIGHT}"
    assert mx.array_equal(found[key], expected[key])


def state(**changes: object) -> Raw:
    found = json.loads(stored()[STATE].data.tobytes()) | changes
    text = np.frombuffer(json.dumps(found).encode(), np.uint8)
    return Raw("U8", text.shape, text)


@pytest.mark.parametrize(
    ("name", "tensor", "error", "message"),
    [
        (f"{WEIGHT}.absmax", None, CheckpointError, "unknown: .*nested_absmax"),
        (f"{WEIGHT}.quant_map", None, CheckpointError, "missing: .*quant_map"),
        (f"{WEIGHT}.nested_quant_map", None, CheckpointError, "missing: .*nested_quant_map"),
        (STATE, None, CheckpointError, "missing: .*quant_state"),
        (STATE, state(shape=[1, 2]), CheckpointError, "does not describe"),
        (STATE, state(blocksize=0), CheckpointError, "does not describe"),
        (STATE, state(blocksize=128), CheckpointError, "does not describe"),
        (STATE, state(nested_offset=None), CheckpointError, "does not describe"),
        (STATE, state(nested_offset=float("nan")), CheckpointError, "does not describe"),
        (STATE, state(quant_type="int8"), CheckpointError, "does not describe"),
        (STATE, Raw("U8", (1,), np.uint8([123])), CheckpointError, "does not describe"),
        (f"{WEIGHT}.quant_map", float32(np.ones(8)), CheckpointError, "wrong shape: .*up_proj"),
        (f"{WEIGHT}.quant_map", float32(np.full(16, np.nan)), RunError, "has values that"),
    ],
)  # fmt: skip
def test_damaged_sources_are_refused(
    tmp_path: Path, name: str, tensor: Raw | None, error: type[Exception], message: str
) -> None:
    tensors = stored()
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    with pytest.raises(error, match=message):
        convert(written(tmp_path / "source", tensors), tmp_path / "out", PLAIN)


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes 8-bit"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "quark"}, "quark"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "modelopt W4A8_AWQ"),
        ({"quant_method": "compressed-tensors", "format": "int-quantized"}, "int-quantized"),
    ],
)
def test_inspect_and_convert_name_other_formats(
    tmp_path: Path, table: dict[str, object], name: str
) -> None:
    """Complete, and yet not to be converted: `inspect` once said the first alone."""
    source = Path(shutil.copytree(SOURCE, tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": table}))
    found = inspect_folder(source)
    assert found.complete and not found.convertible
    assert f"{name}, which is not supported" in (found.obstacle or "")
    with pytest.raises(CheckpointError, match=f"{name}, which is not supported"):
        convert(source, tmp_path / "out", PLAIN)
