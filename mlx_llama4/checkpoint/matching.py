"""Which stored tensors make up which tensor of the model, and which are missing or too many.

For folders in Hugging Face's layout, quantized or not, and in MLX's. Reads headers only.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from mlx_llama4.checkpoint.compressed import PackedIntegers
from mlx_llama4.checkpoint.fp8 import Float8
from mlx_llama4.checkpoint.mlx_packed import MlxPacked
from mlx_llama4.checkpoint.names import is_ignored, spellings
from mlx_llama4.checkpoint.safetensors import Checkpoint, StoredTensor
from mlx_llama4.checkpoint.sources import OneByOne, Plain, WeightSource
from mlx_llama4.config import Config
from mlx_llama4.errors import CheckpointError
from mlx_llama4.files.dtypes import FLOAT_DTYPES
from mlx_llama4.quantization import Quantization
from mlx_llama4.tensors import TensorSpec, model_tensors


@dataclass(frozen=True)
class Matching:
    """specs: what the config asks for. sources: model tensor → where its rows come from. Then
    names, with what is wrong about them.
    """

    specs: dict[str, TensorSpec]
    sources: dict[str, WeightSource] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    mistyped: list[str] = field(default_factory=list)

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
        if name not in finder.taken and not is_ignored(name):
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
    """Finds the stored tensors of one model tensor at a time; notes what is missing or mistyped.

    taken: the stored tensors that are part of something.
    """

    def __init__(self, checkpoint: Checkpoint, config: Config, matching: Matching):
        self.checkpoint = checkpoint
        self.config = config
        self.stored = checkpoint.tensors
        self.matching = matching
        self.taken: set[str] = set()

    def find(self, target: str, spec: TensorSpec) -> WeightSource | None:
        missing = len(self.matching.missing)
        for name in spellings(target):
            if self._is_linear(name):
                return self._linear(name, target, spec.shape)
            if spec.part == "routed experts" and (source := self._experts(name, target, spec)):
                return source
        if len(self.matching.missing) == missing:
            self.matching.missing.append(target)
        return None

    def _is_linear(self, name: str) -> bool:
        return name in self.stored or f"{name}_packed" in self.stored

    def _take(self, name: str, *dtypes: str) -> StoredTensor | None:
        if name not in self.stored:
            self.matching.missing.append(name)
            return None
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
            return self._integers(name, target, shape)
        if self.stored[name].dtype == "F8_E4M3":
            return self._float8(name, target)
        return Plain((target,), self._take(name, *FLOAT_DTYPES))

    def _mlx(self, module: str, target: str) -> WeightSource | None:
        quantization = stored_quantization(self.checkpoint, self.config, module)
        is_affine = quantization.mode == "affine"
        weight = self._take(f"{module}.weight", "U32")
        scales = self._take(f"{module}.scales", *(FLOAT_DTYPES if is_affine else ("U8",)))
        biases = self._take(f"{module}.biases", *FLOAT_DTYPES) if is_affine else None
        if weight is None or scales is None or (is_affine and biases is None):
            return None
        return MlxPacked(target, weight, scales, biases, quantization)

    def _integers(self, name: str, target: str, shape: tuple[int, ...]) -> WeightSource | None:
        packed = self._take(f"{name}_packed", "I32")
        scale = self._take(f"{name}_scale", *FLOAT_DTYPES)
        foreign = self.config.foreign_quantization
        wants_zero_point = foreign is not None and foreign.has_zero_points
        zero_point = None
        if wants_zero_point or f"{name}_zero_point" in self.stored:
            zero_point = self._take(f"{name}_zero_point", "I32")
        if packed is None or scale is None or (wants_zero_point and zero_point is None):
            return None
        return PackedIntegers(target, packed, scale, zero_point, shape)

    def _float8(self, name: str, target: str) -> WeightSource | None:
        is_inverse = f"{name}_scale_inv" in self.stored  # the reciprocal of what quantized it
        weight = self._take(name, "F8_E4M3")
        scale = self._take(f"{name}_scale{'_inv' * is_inverse}", *FLOAT_DTYPES)
        foreign = self.config.foreign_quantization
        if weight is None or scale is None:
            return None
        return Float8(target, weight, scale, foreign.block if foreign else None)

    def _experts(self, name: str, target: str, spec: TensorSpec) -> WeightSource | None:
        """Routed experts as Hugging Face's releases have them, stacked [experts, in, out] with
        gate and up side by side, or as modules of their own, `experts.0.gate_proj.weight`.
        """
        experts, projection = name.removesuffix(".weight").rsplit(".", 1)
        stacked = "down_proj" if projection == "down_proj" else "gate_up_proj"
        if f"{experts}.{stacked}" in self.stored:
            tensor = self._take(f"{experts}.{stacked}", *FLOAT_DTYPES)
            if stacked == "down_proj":
                return Plain((target,), tensor, "transposed")
            stem = target.removesuffix(f"{projection}.weight")
            targets = (f"{stem}gate_proj.weight", f"{stem}up_proj.weight")
            return Plain(targets, tensor, "gate and up")
        names = [f"{experts}.{index}.{projection}.weight" for index in range(spec.shape[0])]
        present = [one for one in names if self._is_linear(one)]
        if not present:
            return None
        self.matching.missing.extend(one for one in names if one not in set(present))
        found = [self._linear(one, one, spec.shape[1:]) for one in present]
        whole = len(found) == len(names) and all(found)
        return OneByOne(tuple(found), target) if whole else None


def _misshapen(source: WeightSource, wanted: list[tuple[int, ...]]) -> list[StoredTensor]:
    """The stored tensors that make the source's shapes other than those wanted."""
    if source.shapes == wanted:
        return []
    if isinstance(source, OneByOne):
        return [
            tensor for expert in source.experts for tensor in _misshapen(expert, [wanted[0][1:]])
        ]
    if isinstance(source, PackedIntegers) and source.bits:
        without = replace(source, zero_point=None)
        return [source.zero_point if without.quantization else source.scale]
    if isinstance(source, MlxPacked | Plain) or source.tensors[0].shape != wanted[0]:
        return [source.tensors[0]]
    return [source.tensors[1]]  # the scales do not go with the weight
