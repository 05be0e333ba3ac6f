"""How weights, keys and values are packed, and the tables of config.json that say so."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_llama4.errors import ConfigError, InputError
from mlx_llama4.files.json_file import Keys


@dataclass(frozen=True)
class Quantization:
    """How a tensor is packed: `group_size` neighbours in a row share a scale."""

    group_size: int
    bits: int
    mode: str = "affine"


AFFINE_GROUP_SIZES = (32, 64, 128)
AFFINE_BITS = (2, 3, 4, 5, 6, 8)  # that we pack to; MLX reads 1 too
FIXED_MODES = {  # whose formats leave nothing to choose
    "mxfp4": Quantization(32, 4, "mxfp4"),
    "mxfp8": Quantization(32, 8, "mxfp8"),
    "nvfp4": Quantization(16, 4, "nvfp4"),
}
QUANTIZATION_MODES = ("affine", *FIXED_MODES)
UNPACKED_BITS = 16


@dataclass(frozen=True)
class KVQuantization:
    """How global layers pack keys and values, once they hold more than `after` tokens.

    Each row of a head is packed by itself, in affine mode, so the result for a token does not
    depend on when it came. Raises InputError for packings without kernels.
    """

    bits: int
    group_size: int = 64
    after: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise InputError(f"--kv-bits {self.bits}: keys and values take 4 or 8 bits")
        if self.group_size not in AFFINE_GROUP_SIZES:
            raise InputError(f"--kv-group-size {self.group_size}: use 32, 64 or 128")
        if self.after < 0:
            raise InputError(f"--kv-quantize-after {self.after}: give a number of tokens")

    def check(self, head_dim: int) -> None:
        """Raises InputError if this model's heads do not split into whole groups."""
        if head_dim % self.group_size:
            raise InputError(
                f"--kv-group-size {self.group_size}: this model's heads are {head_dim} wide, "
                "which is not a multiple of it"
            )

    def row_bytes(self, head_dim: int, dtype_bytes: int) -> int:
        """Bytes of one head's key or value of one token: codes, and each group's scale and bias."""
        groups = head_dim // self.group_size
        return head_dim * self.bits // 8 + 2 * groups * dtype_bytes


@dataclass(frozen=True)
class QuantizationConfig:
    """The `quantization` table of an MLX folder, as mlx-lm and mlx-vlm write it."""

    default: Quantization
    # Module path → its own packing; None: not quantized.
    overrides: Mapping[str, Quantization | None] = field(default_factory=dict)

    def of(self, module_path: str) -> Quantization | None:
        return self.overrides.get(module_path, self.default)


@dataclass(frozen=True)
class ForeignQuantization:
    """A scheme that is not MLX's own: such weights must be converted before they can run."""

    method: str
    format: str | None
    block: tuple[int, int] | None = None  # rows and columns that share a scale
    has_zero_points: bool = False  # must all packed integers have them?

    def __str__(self) -> str:
        return f"{self.method} {self.format}" if self.format else self.method


def parse_quantization(
    raw: Mapping[str, Any], text_raw: Mapping[str, Any]
) -> tuple[QuantizationConfig | None, ForeignQuantization | None]:
    """MLX's own table or a foreign scheme; (None, None) for plain weights. Raises ConfigError."""
    for part in (raw, text_raw):
        table = part.get("quantization") or part.get("quantization_config")
        if not table:
            continue
        if not isinstance(table, Mapping):
            raise ConfigError(f"config.json: quantization must be an object, not {table!r}")
        if "quant_method" in table:
            method = str(table["quant_method"] or "unnamed method")
            scheme = table.get("format") or table.get("quant_algo")
            if method == "bitsandbytes":
                is_short = table.get("load_in_4bit") or table.get("_load_in_4bit")
                scheme = "4-bit" if is_short else "8-bit"
            return None, _foreign(method, str(scheme) if scheme else None, table)
        default = _quantized_as(table, "config.json: quantization")
        overrides = {
            path: _quantized_as(entry, f"config.json: quantization of {path}") if entry else None
            for path, entry in table.items()
            if isinstance(entry, dict | bool) and entry is not True
        }
        return QuantizationConfig(default, overrides), None
    return None, None


def _foreign(method: str, scheme: str | None, table: Mapping[str, Any]) -> ForeignQuantization:
    """A foreign scheme. The block is `weight_block_size`, or that of the first compressed-tensors
    group that has one. Zero points are expected if all groups are asymmetric.
    """
    groups = table.get("config_groups")
    groups = groups.values() if isinstance(groups, Mapping) else ()
    found = [group.get("weights") for group in groups if isinstance(group, Mapping)]
    weights = [part for part in found if isinstance(part, Mapping)]
    blocks = [part["block_structure"] for part in weights if part.get("block_structure")]
    block = table.get("weight_block_size") or next(iter(blocks), None)
    if block is not None:
        where = "config.json: quantization_config"
        numbers = Keys({"block": block}, where).numbers("block", [128, 128])
        if not all(number >= 1 and number == int(number) for number in numbers):
            raise ConfigError(f"{where}: block is {block!r}, not rows and columns")
        block = (int(numbers[0]), int(numbers[1]))
    asymmetric = bool(weights) and all(part.get("symmetric") is False for part in weights)
    return ForeignQuantization(method, scheme, block, asymmetric)


def _quantized_as(table: Mapping[str, Any], where: str) -> Quantization:
    keys = Keys(table, where)
    mode = table.get("mode", "affine")
    if not isinstance(mode, str) or mode not in QUANTIZATION_MODES:
        known = ", ".join(QUANTIZATION_MODES)
        raise ConfigError(f"{where}: mode {mode!r} is unknown; known are {known}")
    found = Quantization(keys.integer("group_size"), keys.integer("bits"), mode)
    is_affine = found.group_size in AFFINE_GROUP_SIZES and found.bits in (1, *AFFINE_BITS)
    if not (is_affine if mode == "affine" else found == FIXED_MODES[mode]):
        raise ConfigError(
            f"{where}: {found.bits} bits in groups of {found.group_size} is not a {mode} packing "
            "that MLX knows"
        )
    return found


def packing_name(packing: Quantization | None) -> str:
    """A packing for people: "4 bits, groups of 64"."""
    if packing is None:
        return "16 bits"
    if packing.mode != "affine":
        return packing.mode
    return f"{packing.bits} bits, groups of {packing.group_size}"


def packing(bits: int | None, group_size: int | None, mode: str | None) -> Quantization:
    """The packing that --bits, --group-size and --mode ask for together. Raises InputError."""
    if mode not in (None, *QUANTIZATION_MODES):
        raise InputError(f"mode {mode} is unknown; use {', '.join(QUANTIZATION_MODES)}")
    if mode in FIXED_MODES:
        fixed = FIXED_MODES[mode]
        if bits not in (None, fixed.bits) or group_size not in (None, fixed.group_size):
            raise InputError(
                f"{mode} has {fixed.bits} bits in groups of {fixed.group_size}; leave out "
                "--bits and --group-size"
            )
        return fixed
    bits = 4 if bits is None else bits
    group_size = 64 if group_size is None else group_size
    if bits not in AFFINE_BITS:
        raise InputError(
            f"{bits} bits are not supported; use {listed(AFFINE_BITS)}, or 16 to pack nothing"
        )
    if group_size not in AFFINE_GROUP_SIZES:
        sizes = listed(AFFINE_GROUP_SIZES)
        raise InputError(f"groups of {group_size} are not supported; use {sizes}")
    return Quantization(group_size, bits)


def listed(numbers: tuple[int, ...]) -> str:
    """Numbers for people: "2, 3 or 4"."""
    return ", ".join(map(str, numbers[:-1])) + f" or {numbers[-1]}"
