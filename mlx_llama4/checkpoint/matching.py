"""Finds the stored tensors that make up each tensor of the model, and those missing or unknown.

For folders in Hugging Face's layout, quantized or not, and in MLX's. Reads headers only, and the
orders of columns (`weight_g_idx`).
"""

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlx_llama4.checkpoint.activation_order import OrderedIntegers, is_trivial
from mlx_llama4.checkpoint.block_fp4 import NvFloat4, StackedNvFloat4, mx_float4
from mlx_llama4.checkpoint.compressed import PackedIntegers
from mlx_llama4.checkpoint.fp8 import Float8, StackedFloat8
from mlx_llama4.checkpoint.mlx_packed import MlxPacked
from mlx_llama4.checkpoint.names import ignored_because, spellings
from mlx_llama4.checkpoint.nf4 import KINDS, TableCodes
from mlx_llama4.checkpoint.safetensors import Checkpoint, StoredTensor
from mlx_llama4.checkpoint.sources import OneByOne, Plain, WeightSource
from mlx_llama4.config import Config
from mlx_llama4.errors import CheckpointError
from mlx_llama4.files.dtypes import FLOAT_DTYPES
from mlx_llama4.quantization import Quantization
from mlx_llama4.tensors import EMBEDDING, TensorSpec, model_tensors


@dataclass(frozen=True)
class Matching:
    """The model's tensors and their sources."""

    specs: dict[str, TensorSpec]  # what the config asks for
    sources: dict[str, WeightSource] = field(default_factory=dict)  # model tensor → its rows
    # Names of tensors, by what is wrong with them:
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    mistyped: list[str] = field(default_factory=list)
    # Reason → how many tensors are left out for it.
    ignored: Counter[str] = field(default_factory=Counter)

    @property
    def problems(self) -> dict[str, list[str]]:
        return {
            "missing": self.missing,
            "unknown": self.unknown,
            "of a wrong shape": self.misshapen,
            "of a wrong type": self.mistyped,
        }

    @property
    def is_mlx(self) -> bool:
        """Is the folder in MLX's layout, ready to run?"""
        return all(
            isinstance(source, MlxPacked | Plain) and source.tensors[0].name == target
            for target, source in self.sources.items()
        )

    def check(self, folder: Path) -> None:
        """Raises CheckpointError for the first problem."""
        for problem, names in self.problems.items():
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise CheckpointError(
                    f"{folder}: tensor {problem}: {names[0]}{more}; the weights are not those "
                    f"its config describes, see: mlx-llama4 inspect {folder}"
                )


def match_tensors(checkpoint: Checkpoint, config: Config) -> Matching:
    matching = Matching(model_tensors(config))
    finder = _Finder(checkpoint, config, matching)
    for target, spec in matching.specs.items():
        if target not in matching.sources and (source := finder.find(target, spec)):
            matching.sources.update(dict.fromkeys(source.targets, source))
    for source in dict.fromkeys(matching.sources.values()):
        for tensor in _misshapen(source, [matching.specs[one].shape for one in source.targets]):
            matching.misshapen.append(f"{tensor.name} {list(tensor.shape)}")
    for name in checkpoint.tensors:
        if name in finder.taken:
            continue
        if reason := ignored_because(name):
            matching.ignored[reason] += 1
        else:
            matching.unknown.append(name)
    return matching


def stored_quantization(checkpoint: Checkpoint, config: Config, module: str) -> Quantization:
    """How a module that has scales is packed."""
    found = config.quantization.of(module) if config.quantization else None
    if found is None:
        raise CheckpointError(
            f"{checkpoint.folder}: {module} has scales, but config.json says it is not quantized"
        )
    return found


class _Finder:
    """Finds the stored tensors of one model tensor at a time; notes what is missing or mistyped."""

    def __init__(self, checkpoint: Checkpoint, config: Config, matching: Matching):
        self.checkpoint = checkpoint
        self.config = config
        self.stored = checkpoint.tensors
        self.matching = matching
        self.taken: set[str] = set()  # stored tensors that are part of a model tensor

    def find(self, target: str, spec: TensorSpec) -> WeightSource | None:
        missing = len(self.matching.missing)
        for name in spellings(target):
            if self._is_linear(name):
                return self._linear(name, target, spec.shape)
            if spec.part == "routed experts" and (source := self._experts(name, target, spec)):
                return source
        if spec.part == "head" and self.config.tied_head:
            return self._tied(target, spec)
        if len(self.matching.missing) == missing:
            self.matching.missing.append(target)
        return None

    def _tied(self, target: str, spec: TensorSpec) -> WeightSource | None:
        """The embedding in the head's place. A head that is stored is taken as it is, even where
        it differs from the embedding, as transformers does.
        """
        for name in spellings(EMBEDDING):
            if self._is_linear(name):
                return self._linear(name, target, spec.shape)
        return None  # the embedding itself is noted as missing

    def _is_linear(self, name: str) -> bool:
        return name in self.stored or f"{name}_packed" in self.stored

    def _wanted(self, name: str, *dtypes: str) -> StoredTensor | None:
        """Takes a stored tensor, or notes that it is missing."""
        if name in self.stored:
            return self._take(name, *dtypes)
        self.matching.missing.append(name)
        return None

    def _take(self, name: str, *dtypes: str) -> StoredTensor:
        """A tensor that is stored; notes if its dtype is none of these."""
        self.taken.add(name)
        tensor = self.stored[name]
        if tensor.dtype not in dtypes:
            self.matching.mistyped.append(f"{name} {tensor.dtype}")
        return tensor

    def _linear(self, name: str, target: str, shape: tuple[int, ...]) -> WeightSource | None:
        module = name.removesuffix(".weight")
        if f"{module}.scales" in self.stored:
            return self._mlx(module, target)
        if f"{name}_packed" in self.stored:
            if self.stored[f"{name}_packed"].dtype == "U8":
                return self._float4(name, f"{name}_packed", target)
            return self._integers(name, target, shape)
        if f"{name}.absmax" in self.stored:
            return self._table_codes(name, target, shape)
        if self.stored[name].dtype == "F8_E4M3":
            return self._float8(name, target)
        scale = self.stored.get(f"{name}_scale")
        if self.stored[name].dtype == "U8" and scale and scale.dtype in ("F8_E4M3", "U8"):
            return self._float4(name, name, target)
        return Plain((target,), self._take(name, *FLOAT_DTYPES))

    def _mlx(self, module: str, target: str) -> WeightSource | None:
        quantization = stored_quantization(self.checkpoint, self.config, module)
        is_affine = quantization.mode == "affine"
        weight = self._wanted(f"{module}.weight", "U32")
        scales = self._wanted(f"{module}.scales", *(FLOAT_DTYPES if is_affine else ("U8",)))
        biases = self._wanted(f"{module}.biases", *FLOAT_DTYPES) if is_affine else None
        if weight is None or scales is None or (is_affine and biases is None):
            return None
        return MlxPacked(target, weight, scales, biases, quantization)

    def _integers(self, name: str, target: str, shape: tuple[int, ...]) -> WeightSource | None:
        packed = self._wanted(f"{name}_packed", "I32")
        scale = self._wanted(f"{name}_scale", *FLOAT_DTYPES)
        foreign = self.config.foreign_quantization
        wants_zero_point = foreign is not None and foreign.has_zero_points
        zero_point = None
        if wants_zero_point or f"{name}_zero_point" in self.stored:
            zero_point = self._wanted(f"{name}_zero_point", "I32")
        if packed is None or scale is None or (wants_zero_point and zero_point is None):
            return None
        integers = PackedIntegers(target, packed, scale, zero_point, shape)
        if f"{name}_g_idx" not in self.stored:
            return integers
        order = self._take(f"{name}_g_idx", "I32")
        if order.dtype == "I32" and is_trivial(self.checkpoint, order, integers.num_groups):
            return integers
        return OrderedIntegers(integers, order)

    def _float8(self, name: str, target: str) -> WeightSource | None:
        is_inverse = f"{name}_scale_inv" in self.stored  # the reciprocal of the quantizing scale
        weight = self._take(name, "F8_E4M3")
        scale = self._wanted(f"{name}_scale{'_inv' * is_inverse}", *FLOAT_DTYPES)
        foreign = self.config.foreign_quantization
        if scale is None:
            return None
        return Float8(target, weight, scale, foreign.block if foreign else None)

    def _table_codes(self, name: str, target: str, shape: tuple[int, ...]) -> WeightSource | None:
        """bitsandbytes' 4-bit weights."""
        codes = self._wanted(name, "U8")
        is_nested = f"{name}.nested_absmax" in self.stored
        absmax = self._wanted(f"{name}.absmax", "U8" if is_nested else "F32")
        table = self._wanted(f"{name}.quant_map", "F32")
        states = [f"{name}.quant_state.bitsandbytes__{kind}" for kind in KINDS]
        state = self._wanted(next((one for one in states if one in self.stored), states[0]), "U8")
        factors = self._wanted(f"{name}.nested_absmax", "F32") if is_nested else None
        numbers = self._wanted(f"{name}.nested_quant_map", "F32") if is_nested else None
        if codes is None or absmax is None or table is None or state is None:
            return None
        if is_nested and numbers is None:
            return None
        return TableCodes(target, codes, absmax, table, state, factors, numbers, shape)

    def _float4(self, name: str, stored: str, target: str) -> WeightSource | None:
        """MXFP4 or NVFP4. stored: the name of the codes."""
        packed = self._take(stored, "U8")
        has_powers = f"{name}_scale" in self.stored and self.stored[f"{name}_scale"].dtype == "U8"
        scale = self._wanted(f"{name}_scale", "U8" if has_powers else "F8_E4M3")
        if has_powers and scale is not None:
            return mx_float4(target, packed, scale)
        divides = stored != name  # compressed-tensors stores the reciprocal of ModelOpt's scale
        whole = self._wanted(f"{name}_{'global_scale' if divides else 'scale_2'}", "F32")
        if scale is None or whole is None:
            return None
        return NvFloat4(target, packed, scale, whole, divides)

    def _experts(self, name: str, target: str, spec: TensorSpec) -> WeightSource | None:
        """Routed experts, either stacked [experts, in, out] with gate and up side by side, as in
        Hugging Face's releases, or as separate modules, `experts.0.gate_proj.weight`.
        """
        experts, projection = name.removesuffix(".weight").rsplit(".", 1)
        stacked = "down_proj" if projection == "down_proj" else "gate_up_proj"
        if f"{experts}.{stacked}" in self.stored:
            stem = target.removesuffix(f"{projection}.weight")
            both = (f"{stem}gate_proj.weight", f"{stem}up_proj.weight")
            targets = (target,) if stacked == "down_proj" else both
            return self._stacked(f"{experts}.{stacked}", targets)
        names = [f"{experts}.{index}.{projection}.weight" for index in range(spec.shape[0])]
        if self._is_linear(f"{experts}.{projection}s.0.weight"):  # as fine-tuners list them
            names = [f"{experts}.{projection}s.{index}.weight" for index in range(spec.shape[0])]
        present = [one for one in names if self._is_linear(one)]
        if not present:
            return None
        self.matching.missing.extend(one for one in names if one not in set(present))
        found = [self._linear(one, one, spec.shape[1:]) for one in present]
        whole = tuple(one for one in found if one is not None)
        return OneByOne(whole, target) if len(whole) == len(names) else None

    def _stacked(self, name: str, targets: tuple[str, ...]) -> WeightSource | None:
        dtype = self.stored[name].dtype
        if dtype not in ("F8_E4M3", "U8"):
            tensor = self._take(name, *FLOAT_DTYPES)
            return Plain(targets, tensor, "transposed" if len(targets) == 1 else "gate and up")
        tensor = self._take(name, dtype)
        if dtype == "F8_E4M3":
            scale = self._wanted(f"{name}_weight_scale", *FLOAT_DTYPES)
            return None if scale is None else StackedFloat8(targets, tensor, scale)
        scale = self._wanted(f"{name}_weight_scale", "F8_E4M3")
        whole = self._wanted(f"{name}_weight_scale_2", "F32")
        if scale is None or whole is None:
            return None
        return StackedNvFloat4(targets, tensor, scale, whole)


def _misshapen(source: WeightSource, wanted: list[tuple[int, ...]]) -> list[StoredTensor]:
    """The stored tensors whose shapes are to blame if the source's are not those wanted."""
    if source.shapes == wanted:
        return []
    if isinstance(source, OneByOne):
        return [
            tensor for expert in source.experts for tensor in _misshapen(expert, [wanted[0][1:]])
        ]
    if isinstance(source, OrderedIntegers):
        return _misshapen(source.integers, wanted) or [source.order]
    if isinstance(source, PackedIntegers) and source.bits:
        fits_without = replace(source, zero_point=None).quantization is not None
        return [source.zero_point if source.zero_point and fits_without else source.scale]
    if isinstance(source, StackedFloat8 | NvFloat4 | StackedNvFloat4 | TableCodes):
        codes = math.prod(source.tensors[0].shape) * (1 + (source.tensors[0].dtype == "U8"))
        fits = codes == sum(map(math.prod, wanted))
        return list(source.tensors[1:] if fits else source.tensors[:1])
    if isinstance(source, MlxPacked | Plain) or source.tensors[0].shape != wanted[0]:
        return [source.tensors[0]]
    return [source.tensors[1]]  # the scales do not fit the weight
