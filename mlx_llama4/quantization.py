"""The `quantization` table of an MLX folder's config.json, as mlx-lm and mlx-vlm write it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_llama4.errors import ConfigError
from mlx_llama4.json_file import Keys

QUANTIZATION_MODES = ("affine", "mxfp4", "mxfp8", "nvfp4")


@dataclass(frozen=True)
class Quantization:
    """How one tensor is packed; `group_size` neighbours in a row share a scale."""

    group_size: int
    bits: int
    mode: str = "affine"


@dataclass(frozen=True)
class QuantizationConfig:
    """The `quantization` table of an MLX folder: a default, and module paths that differ.

    An override of None says that the module is not quantized.
    """

    default: Quantization
    overrides: Mapping[str, Quantization | None] = field(default_factory=dict)

    def of(self, module_path: str) -> Quantization | None:
        return self.overrides.get(module_path, self.default)


@dataclass(frozen=True)
class ForeignQuantization:
    """A scheme that is not MLX's own: such weights must be converted before they can run.

    block: rows and columns that share a scale, where blocks do.
    """

    method: str
    format: str | None
    block: tuple[int, int] | None

    def __str__(self) -> str:
        return f"{self.method} {self.format}" if self.format else self.method


def parse_quantization(
    raw: Mapping[str, Any], text_raw: Mapping[str, Any]
) -> tuple[QuantizationConfig | None, ForeignQuantization | None]:
    """MLX's own table, or a foreign scheme; (None, None) for plain weights."""
    for part in (raw, text_raw):
        table = part.get("quantization") or part.get("quantization_config")
        if not table:
            continue
        if not isinstance(table, Mapping):
            raise ConfigError(f"config.json: quantization must be an object, not {table!r}")
        if "quant_method" in table:
            method = str(table["quant_method"] or "unnamed method")
            scheme = str(table["format"]) if table.get("format") else None
            return None, ForeignQuantization(method, scheme, _block(table))
        default = _quantized_as(table, "config.json: quantization")
        overrides = {
            path: _quantized_as(entry, f"config.json: quantization of {path}") if entry else None
            for path, entry in table.items()
            if isinstance(entry, dict | bool) and entry is not True
        }
        return QuantizationConfig(default, overrides), None
    return None, None


def _block(table: Mapping[str, Any]) -> tuple[int, int] | None:
    """The block of `weight_block_size`, or of the first compressed-tensors group that has one."""
    groups = table.get("config_groups")
    groups = groups.values() if isinstance(groups, Mapping) else ()
    weights = [group.get("weights") for group in groups if isinstance(group, Mapping)]
    found = [part["block_structure"] for part in weights if part and part.get("block_structure")]
    block = table.get("weight_block_size") or next(iter(found), None)
    if block is None:
        return None
    where = "config.json: quantization_config"
    rows, columns = Keys({"block": block}, where).numbers("block", [128, 128])
    return int(rows), int(columns)


def _quantized_as(table: Mapping[str, Any], where: str) -> Quantization:
    keys = Keys(table, where)
    mode = table.get("mode", "affine")
    if mode not in QUANTIZATION_MODES:
        known = ", ".join(QUANTIZATION_MODES)
        raise ConfigError(f"{where}: mode {mode!r} is unknown; known are {known}")
    return Quantization(keys.integer("group_size"), keys.integer("bits"), mode)
