"""Which tensor of a folder is which of the model's, and which are missing or too many.

For folders in Hugging Face's layout and in MLX's, quantized or not. Reads headers only.
"""

from dataclasses import dataclass
from pathlib import Path

from mlx_llama4.config import Config
from mlx_llama4.convert.checkpoint import Checkpoint
from mlx_llama4.convert.layouts import model_shapes
from mlx_llama4.convert.names import Source, source_of
from mlx_llama4.errors import CheckpointError
from mlx_llama4.quantization import Quantization
from mlx_llama4.tensors import TensorSpec, model_tensors, quantized_tensors

FLOAT_DTYPES = ("BF16", "F16", "F32")
PACKED_DTYPES = ("U32",)
SCALE_DTYPES = (*FLOAT_DTYPES, "U8")  # the mx modes keep their scales in 8 bits


@dataclass(frozen=True)
class Matching:
    """specs: what the config asks for. sources: model tensor → the stored tensor that holds it.
    scales: stored scales and biases → the model tensor that they belong to. Then names, with
    what is wrong about them.
    """

    specs: dict[str, TensorSpec]
    sources: dict[str, Source]
    scales: dict[str, str]
    missing: list[str]
    unknown: list[str]
    misshapen: list[str]
    mistyped: list[str]

    @property
    def problems(self) -> dict[str, list[str]]:
        return {
            "missing": self.missing,
            "unknown": self.unknown,
            "of a wrong shape": self.misshapen,
            "of a wrong type": self.mistyped,
        }

    def check(self, folder: Path) -> None:
        """Raises CheckpointError for the first problem."""
        for problem, names in self.problems.items():
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise CheckpointError(
                    f"{folder}: tensor {problem}: {names[0]}{more}; the weights are not those "
                    f"config.json describes, see: mlx-llama4 inspect {folder}"
                )


def match_tensors(checkpoint: Checkpoint, config: Config) -> Matching:
    specs = model_tensors(config)
    stored = checkpoint.tensors
    packed, scales = _packed(checkpoint, config, specs)
    sources: dict[str, Source] = {}
    unknown: list[str] = []
    misshapen: list[str] = []
    mistyped: list[str] = []
    for name, tensor in stored.items():
        dtypes = FLOAT_DTYPES
        if name in scales:
            right_shape = tensor.shape == packed[name]
            dtypes = SCALE_DTYPES
        else:
            source = source_of(name)
            if source is None:
                continue
            if not all(target in specs for target in source.targets):
                unknown.append(name)
                continue
            sources.update(dict.fromkeys(source.targets, source))
            wanted = [packed.get(target, specs[target].shape) for target in source.targets]
            right_shape = model_shapes(source.layout, tensor.shape) == wanted
            if name in packed:
                dtypes = PACKED_DTYPES
        if not right_shape:
            misshapen.append(f"{name} {list(tensor.shape)}")
        elif tensor.dtype not in dtypes:
            mistyped.append(f"{name} {tensor.dtype}")
    missing = [name for name in [*specs, *scales] if name not in sources and name not in stored]
    return Matching(specs, sources, scales, missing, unknown, misshapen, mistyped)


def stored_quantization(checkpoint: Checkpoint, config: Config, module: str) -> Quantization:
    """How a module that has scales is packed."""
    found = config.quantization.of(module) if config.quantization else None
    if found is None:
        raise CheckpointError(
            f"{checkpoint.folder}: {module} has scales, but config.json says it is not quantized"
        )
    return found


def _packed(
    checkpoint: Checkpoint, config: Config, specs: dict[str, TensorSpec]
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes of what packed modules consist of, by name; and their scales → their weight."""
    shapes: dict[str, tuple[int, ...]] = {}
    scales: dict[str, str] = {}
    for name, spec in specs.items():
        module = name.removesuffix(".weight")
        if f"{module}.scales" in checkpoint.tensors:
            quantization = stored_quantization(checkpoint, config, module)
            parts = quantized_tensors(name, spec.shape, quantization)
            shapes.update(parts)
            scales.update({part: name for part in parts if part != name})
    return shapes, scales
