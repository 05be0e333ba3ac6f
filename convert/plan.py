"""Plans a conversion: its jobs, output tensors and bytes. Everything is checked here, before any
work is done.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mlx_llama4.checkpoint.open import Source, check_format
from mlx_llama4.checkpoint.safetensors import StoredTensor
from mlx_llama4.checkpoint.sources import BLOCK_BYTES, OneByOne, WeightSource, num_rows, row_bytes
from mlx_llama4.convert.image_token import check_image_token
from mlx_llama4.convert.recipes import Recipe, check_rules
from mlx_llama4.convert.shards import OutputTensor
from mlx_llama4.files.dtypes import FLOATS, ITEM_BYTES
from mlx_llama4.quantization import Quantization
from mlx_llama4.tensors import TensorSpec, quantized_tensors

# Memory of the process beside slices: threads, and buffers that MLX keeps for reuse.
OVERHEAD_BYTES = 100 * 10**6


@dataclass(frozen=True)
class Job:
    """A slice: rows start … stop - 1 of one source."""

    source: WeightSource
    start: int
    stop: int

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the source, approximately."""
        return row_bytes(self.source) * (self.stop - self.start)

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """The stored tensors that the job reads."""
        if isinstance(self.source, OneByOne):
            experts = self.source.experts[self.start : self.stop]
            return tuple(tensor for expert in experts for tensor in expert.tensors)
        return self.source.tensors

    @cached_property
    def files(self) -> list[Path]:
        """The files of those tensors."""
        return sorted({tensor.file for tensor in self.tensors})


@dataclass(frozen=True)
class Plan:
    """Everything a conversion will do."""

    recipe: Recipe
    specs: Mapping[str, TensorSpec]
    packings: Mapping[str, Quantization | None]  # of each model tensor
    parts: Mapping[str, Mapping[str, OutputTensor]]  # model tensor → the tensors written for it
    jobs: list[Job]

    @cached_property
    def outputs(self) -> dict[str, OutputTensor]:
        """All tensors written, in the model's order."""
        return {name: part for parts in self.parts.values() for name, part in parts.items()}

    @cached_property
    def output_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.outputs.values())

    @cached_property
    def source_bytes(self) -> int:
        return sum(job.nbytes for job in self.jobs)

    @cached_property
    def peak_bytes(self) -> int:
        """The most memory that the process takes beyond an idle one's, approximately.

        While one slice is packed, the next is read and the one before is written. A slice is in
        memory as read, as an array, and once more laid out for its targets; slices that are read
        one by one or packed are widened to 32 bits on the way.
        """
        return OVERHEAD_BYTES + max(self._job_bytes(job) for job in self.jobs)

    def _job_bytes(self, job: Job) -> int:
        rows = job.stop - job.start
        size = sum(
            self.specs[one].size // num_rows(job.source) * rows for one in job.source.targets
        )
        width = 4 if self.recipe.search else ITEM_BYTES[FLOATS[self.recipe.dtype]]
        return 2 * job.nbytes + 3 * size * width


def make_plan(source: Source, recipe: Recipe) -> Plan:
    """Raises CheckpointError for an unknown format and for tensors that are missing, unknown or of
    a wrong shape; ConfigError if pictures would not find their places; InputError for rules that
    match nothing.
    """
    check_format(source.folder, source.config.foreign_quantization)
    check_image_token(source)
    matching = source.matching
    matching.check(source.folder)
    check_rules(recipe, matching.specs)
    # In the model's order; each source once, though gate and up share one.
    sources = dict.fromkeys(matching.sources[name] for name in matching.specs)
    packings = {
        name: recipe.of(name, spec, matching.sources[name].quantization)
        for name, spec in matching.specs.items()
    }
    parts = {
        name: stored_parts(name, spec, packings[name], recipe.dtype)
        for name, spec in matching.specs.items()
    }
    jobs = [job for one in sources for job in _jobs(one)]
    return Plan(recipe, matching.specs, packings, parts, jobs)


def _jobs(source: WeightSource) -> list[Job]:
    rows = num_rows(source)
    step = max(1, BLOCK_BYTES // max(row_bytes(source), 1))
    return [Job(source, start, min(start + step, rows)) for start in range(0, rows, step)]


def stored_parts(
    name: str, spec: TensorSpec, packing: Quantization | None, dtype: str
) -> dict[str, OutputTensor]:
    """The tensors written for a model tensor: itself, or its words, scales and biases."""
    stored = FLOATS[dtype]
    if packing is None:
        return {name: OutputTensor(stored, spec.shape)}
    scales = stored if packing.mode == "affine" else "U8"
    return {
        part: OutputTensor("U32" if part == name else scales, shape)
        for part, shape in quantized_tensors(name, spec.shape, packing).items()
    }
