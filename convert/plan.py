"""What a conversion will do: jobs, output tensors, bytes. Everything is checked here, before
any work is done.
"""

from dataclasses import dataclass

from mlx_llama4.config import Config
from mlx_llama4.convert.checkpoint import Checkpoint, StoredTensor
from mlx_llama4.convert.matching import match_tensors
from mlx_llama4.convert.names import Source
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.write import OutputTensor
from mlx_llama4.tensors import TensorSpec, quantized_tensors

# Rows are read in blocks of about this size; a single expert may be larger.
BLOCK_BYTES = 64 * 2**20
SAFETENSORS_DTYPE = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Job:
    """Rows start … stop - 1 of one source tensor's first axis."""

    source: Source
    tensor: StoredTensor
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes // self.tensor.shape[0] * (self.stop - self.start)


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    specs: dict[str, TensorSpec]
    jobs: list[Job]
    outputs: dict[str, OutputTensor]

    @property
    def output_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.outputs.values())

    @property
    def source_bytes(self) -> int:
        return sum(job.nbytes for job in self.jobs)


def make_plan(checkpoint: Checkpoint, config: Config, recipe: Recipe) -> Plan:
    """Raises CheckpointError for tensors that are missing, unknown, or of a wrong shape."""
    matching = match_tensors(checkpoint, config)
    matching.check(checkpoint.folder)
    # In the model's order, each source once though gate and up share theirs.
    sources = dict.fromkeys(matching.sources[name] for name in matching.specs)
    jobs = [job for source in sources for job in _jobs(source, checkpoint.tensors[source.name])]
    outputs: dict[str, OutputTensor] = {}
    for name, spec in matching.specs.items():
        outputs.update(_outputs(name, spec, recipe))
    return Plan(recipe, matching.specs, jobs, outputs)


def _jobs(source: Source, tensor: StoredTensor) -> list[Job]:
    rows = tensor.shape[0]
    step = max(1, BLOCK_BYTES * rows // tensor.nbytes)
    return [Job(source, tensor, start, min(start + step, rows)) for start in range(0, rows, step)]


def _outputs(name: str, spec: TensorSpec, recipe: Recipe) -> dict[str, OutputTensor]:
    quantization = recipe.of(name, spec)
    dtype = SAFETENSORS_DTYPE[recipe.dtype]
    if quantization is None:
        return {name: OutputTensor(dtype, spec.shape)}
    scale_dtype = dtype if quantization.mode == "affine" else "U8"
    return {
        part: OutputTensor("U32" if part == name else scale_dtype, shape)
        for part, shape in quantized_tensors(name, spec.shape, quantization).items()
    }
