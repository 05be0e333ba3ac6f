"""hf_quant_config.json, in which ModelOpt's earlier versions say how weights are quantized."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_llama4.errors import ConfigError
from mlx_llama4.files.json_file import read_json

MODELOPT_NAME = "hf_quant_config.json"


def with_modelopt(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """config.json, completed from hf_quant_config.json if only that one says how the weights are
    quantized. The table goes where ModelOpt's later versions put it. Raises ConfigError.
    """
    text = raw.get("text_config")
    parts = [raw, text] if isinstance(text, Mapping) else [raw]
    keys = ("quantization", "quantization_config")
    file = folder / MODELOPT_NAME
    if any(part.get(key) for part in parts for key in keys) or not file.is_file():
        return raw
    table = read_json(file).get("quantization")
    if not isinstance(table, Mapping):
        raise ConfigError(f"{file}: quantization must be an object, not {table!r}")
    return raw | {"quantization_config": {"quant_method": "modelopt"} | dict(table)}
