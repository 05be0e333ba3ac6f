"""Running a conversion: one slice of one source tensor at a time, in bounded memory."""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_llama4.config import Config, load_config, parse_config, read_config
from mlx_llama4.convert.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from mlx_llama4.convert.config_json import mlx_config
from mlx_llama4.convert.fit import fits
from mlx_llama4.convert.layouts import lay_out
from mlx_llama4.convert.plan import Job, Plan, make_plan
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.write import FolderWriter, check_destination, resolve_destination
from mlx_llama4.errors import CheckpointError, RunError
from mlx_llama4.tensors import without_absent_vision

# Everything beside config and weights that a model folder needs.
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE*",
    "USE_POLICY*",
)


@dataclass(frozen=True)
class Report:
    """peak_bytes: most memory that MLX and one slice of the source took together."""

    source_bytes: int
    output_bytes: int
    seconds: float
    peak_bytes: int
    has_vision: bool


def convert(
    source: Path,
    out: Path,
    recipe: Recipe,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Convert a Hugging Face folder to an MLX folder.

    on_progress is told (bytes done, bytes in all) of the source after each slice. Raises
    InputError before anything is written, RunError after; either way `out` then does not exist.
    """
    start = time.perf_counter()
    out = resolve_destination(out)
    raw = read_config(source)
    config = parse_config(raw)
    _refuse_quantized(source, config)
    checkpoint = open_checkpoint(source)
    config = without_absent_vision(config, checkpoint.tensors)
    plan = make_plan(checkpoint, config, recipe)
    check_destination(out, plan.output_bytes)
    mx.reset_peak_memory()
    held_before = mx.get_active_memory()
    with FolderWriter(out, plan.outputs) as writer:
        # First what is small, so that what cannot be copied is known in time.
        for path in _side_files(source):
            writer.copy(path)
        text = json.dumps(mlx_config(raw, config, recipe, plan.specs), indent=4)
        writer.write_text("config.json", text + "\n")
        _run(checkpoint, plan, writer, on_progress)
        writer.finish()
    return Report(
        source_bytes=plan.source_bytes,
        output_bytes=plan.output_bytes,
        seconds=time.perf_counter() - start,
        peak_bytes=mx.get_peak_memory() - held_before + max(job.nbytes for job in plan.jobs),
        has_vision=config.vision is not None,
    )


def default_dtype(source: Path) -> str:
    """The 16-bit type to convert to: that of most of the source's bytes, or bfloat16 for 32 bits.

    By what is stored, since config.json may say otherwise.
    """
    load_config(source)  # for its errors, which are clearer where this is no model folder
    nbytes: Counter[str] = Counter()
    checkpoint = open_checkpoint(source)
    for tensor in checkpoint.tensors.values():
        nbytes[tensor.dtype] += tensor.nbytes
    return "float16" if nbytes.most_common(1)[0][0] == "F16" else "bfloat16"


def _refuse_quantized(source: Path, config: Config) -> None:
    if config.foreign_quantization is not None:
        raise CheckpointError(
            f"{source} is quantized ({config.foreign_quantization}); only bf16, fp16 and fp32 "
            "checkpoints can be converted"
        )
    if config.quantization is not None:
        raise CheckpointError(
            f"{source} is a quantized MLX folder already; convert from the original weights"
        )


def _run(
    checkpoint: Checkpoint,
    plan: Plan,
    writer: FolderWriter,
    on_progress: Callable[[int, int], None],
) -> None:
    done = 0
    for job in plan.jobs:
        _run_job(checkpoint, plan, job, writer)
        done += job.nbytes
        on_progress(done, plan.source_bytes)


def _run_job(checkpoint: Checkpoint, plan: Plan, job: Job, writer: FolderWriter) -> None:
    # A function of its own, so that nothing of a slice is left when the next one is read.
    data = checkpoint.read(job.tensor, job.start, job.stop)
    if not fits(data, job.tensor.dtype, plan.recipe.dtype):
        raise RunError(
            f"{checkpoint.folder}: {job.tensor.name} has values that {plan.recipe.dtype} cannot "
            "hold; use another --dtype or, if these are NaN, download it again"
        )
    rows = as_array(data, job.tensor, job.stop - job.start).astype(_dtype(plan.recipe))
    del data
    for name, array in zip(job.source.targets, lay_out(job.source.layout, rows), strict=True):
        _write_rows(plan, job, name, array, writer)


def _write_rows(plan: Plan, job: Job, name: str, rows: mx.array, writer: FolderWriter) -> None:
    quantization = plan.recipe.of(name, plan.specs[name])
    if quantization is None:
        writer.write(name, job.start, _as_bytes(rows))
        return
    module = name.removesuffix(".weight")
    packed = mx.quantize(rows, quantization.group_size, quantization.bits, mode=quantization.mode)
    mx.eval(packed)
    for part, array in zip(("weight", "scales", "biases"), packed, strict=False):
        writer.write(f"{module}.{part}", job.start, _as_bytes(array))


def as_array(data: np.ndarray, tensor: StoredTensor, rows: int) -> mx.array:
    """Bytes of `rows` rows of a float tensor → an array of its dtype, [rows, …]"""
    shape = (rows, *tensor.shape[1:])
    if tensor.dtype == "F32":
        return mx.array(data.view(np.float32).reshape(shape))
    halves = mx.array(data.view(np.uint16).reshape(shape))
    return halves.view(mx.bfloat16 if tensor.dtype == "BF16" else mx.float16)


def _as_bytes(array: mx.array) -> memoryview:
    array = mx.contiguous(array)
    mx.eval(array)
    # numpy has no bfloat16; the bytes are the same whatever they are called.
    return memoryview(np.asarray(array.view(mx.uint8))).cast("B")


def _dtype(recipe: Recipe) -> mx.Dtype:
    return getattr(mx, recipe.dtype)


def _side_files(source: Path) -> list[Path]:
    return [path for pattern in SIDE_FILES for path in source.glob(pattern) if path.is_file()]
