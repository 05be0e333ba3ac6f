"""Model folder → model and processor."""

from pathlib import Path

import mlx.core as mx
from mlx import nn

from mlx_llama4.config import Config, load_config
from mlx_llama4.convert.checkpoint import Checkpoint, open_checkpoint
from mlx_llama4.errors import CheckpointError
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.processor import Processor
from mlx_llama4.quantization import Quantization
from mlx_llama4.tensors import model_tensors, quantized_tensors, without_absent_vision


def load(folder: Path, dtype: mx.Dtype | None = None) -> tuple[Llama4, Processor]:
    """The model of an MLX folder, its weights in memory, and what turns messages into prompts.

    dtype: of activations and of all weights that are not packed. By default float32 on the CPU,
    whose kernels for 16 bits are ten times slower, and the folder's own on a GPU.

    Raises CheckpointError or ConfigError if the folder is incomplete or not what it says.
    """
    config = load_config(folder)
    with open_checkpoint(folder) as checkpoint:
        config = without_absent_vision(config, checkpoint.tensors)
        check_tensors(checkpoint, config)
        processor = Processor.load(folder, config)
        model = load_model(checkpoint, config, dtype or default_dtype(config))
    return model, processor


def default_dtype(config: Config) -> mx.Dtype:
    if mx.default_device() == mx.cpu:
        return mx.float32
    named = {"float16": mx.float16, "float32": mx.float32}
    return named.get(config.dtype or "", mx.bfloat16)


def load_model(checkpoint: Checkpoint, config: Config, dtype: mx.Dtype) -> Llama4:
    """The model with the weights of a checkpoint that `check_tensors` has passed."""
    model = Llama4(config)

    def quantization_of(path: str, module: nn.Module) -> bool | dict[str, int | str]:
        if f"{path}.scales" not in checkpoint.tensors:
            return False
        found = stored_quantization(checkpoint, config, path)
        return {"group_size": found.group_size, "bits": found.bits, "mode": found.mode}

    if config.quantization is not None:
        nn.quantize(model, class_predicate=quantization_of)
    weights: list[tuple[str, mx.array]] = []
    for file in checkpoint.files:
        for name, array in mx.load(str(file)).items():
            is_float = mx.issubdtype(array.dtype, mx.floating)
            weights.append((name, array.astype(dtype) if is_float else array))
    model.load_weights(weights)
    model.eval()
    mx.eval(model.parameters())
    return model


def stored_quantization(checkpoint: Checkpoint, config: Config, module: str) -> Quantization:
    """How a module that has scales is packed."""
    found = config.quantization.of(module) if config.quantization else None
    if found is None:
        raise CheckpointError(
            f"{checkpoint.folder}: {module} has scales, but config.json says it is not quantized"
        )
    return found


def check_tensors(checkpoint: Checkpoint, config: Config) -> None:
    """Raises CheckpointError unless the folder holds just the model's tensors, in its shapes."""
    folder, stored = checkpoint.folder, checkpoint.tensors
    if config.foreign_quantization or any(name.endswith("gate_up_proj") for name in stored):
        raise CheckpointError(
            f"{folder} is not converted yet; run: mlx-llama4 convert {folder} OUTPUT_FOLDER"
        )
    missing, unexpected = compare_tensors(checkpoint, config)
    for problem, names in (("lacks", missing), ("holds unknown", unexpected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{folder} {problem} tensor {names[0]}{more}; see: mlx-llama4 inspect {folder}"
            )
    for name, shape in expected_shapes(checkpoint, config).items():
        if stored[name].shape != shape:
            raise CheckpointError(
                f"{folder}: {name} has shape {list(stored[name].shape)}, but config.json makes it "
                f"{list(shape)}"
            )


def compare_tensors(checkpoint: Checkpoint, config: Config) -> tuple[list[str], list[str]]:
    """Names that are missing from the folder, and names that it should not have."""
    expected = expected_shapes(checkpoint, config)
    missing = [name for name in expected if name not in checkpoint.tensors]
    return missing, sorted(checkpoint.tensors.keys() - expected.keys())


def expected_shapes(checkpoint: Checkpoint, config: Config) -> dict[str, tuple[int, ...]]:
    """Shape by name of all tensors; those with scales beside them are packed."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, spec in model_tensors(config).items():
        module = name.removesuffix(".weight")
        if f"{module}.scales" in checkpoint.tensors:
            found = stored_quantization(checkpoint, config, module)
            shapes.update(quantized_tensors(name, spec.shape, found))
        else:
            shapes[name] = spec.shape
    return shapes
