"""The error of the packed weights against the source's, without calibration data."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mlx_llama4 import __version__
from mlx_llama4.checkpoint.open import Source
from mlx_llama4.convert.journal import Entry
from mlx_llama4.convert.pack import ErrorSums, relative_error
from mlx_llama4.convert.plan import Plan
from mlx_llama4.convert.recipes import describe
from mlx_llama4.quantization import packing_name


@dataclass(frozen=True)
class PartQuality:
    """One part of the model."""

    part: str
    stored_as: tuple[str, ...]
    parameters: int
    nbytes: int
    error: float | None  # relative, root mean square over its rounded tensors; None if none was

    @property
    def bits_per_weight(self) -> float:
        return self.nbytes * 8 / self.parameters


@dataclass(frozen=True)
class Quality:
    """The errors of all parts and tensors."""

    parts: tuple[PartQuality, ...]
    tensors: dict[str, float]  # name → relative error


def measured_quality(plan: Plan, entries: Iterable[Entry]) -> Quality:
    # In the order of the jobs, since a sum of floats depends on its order.
    by_tensor: dict[str, ErrorSums] = {}
    for entry in sorted(entries, key=lambda entry: entry.job):
        for name, sums in entry.errors.items():
            by_tensor[name] = _added(by_tensor.get(name), sums)
    by_part: dict[str, ErrorSums] = {}
    parameters: dict[str, int] = defaultdict(int)
    nbytes: dict[str, int] = defaultdict(int)
    stored_as: dict[str, set[str]] = defaultdict(set)
    for name, spec in plan.specs.items():
        parameters[spec.part] += spec.size
        nbytes[spec.part] += sum(part.nbytes for part in plan.parts[name].values())
        packing = plan.packings[name]
        stored_as[spec.part].add(packing_name(packing) if packing else plan.recipe.dtype)
        if name in by_tensor:
            by_part[spec.part] = _added(by_part.get(spec.part), by_tensor[name])
    parts = tuple(
        PartQuality(
            part,
            tuple(sorted(stored_as[part])),
            parameters[part],
            nbytes[part],
            relative_error(by_part[part]) if part in by_part else None,
        )
        for part in parameters
    )
    return Quality(parts, {name: relative_error(sums) for name, sums in by_tensor.items()})


def planned_quality(plan: Plan) -> Quality:
    """Sizes without errors, before anything is packed."""
    return measured_quality(plan, ())


def conversion_json(source: Source, plan: Plan, quality: Quality) -> dict[str, Any]:
    """The contents of conversion.json. They say nothing of when or how fast, so that the same
    conversion gives the same bytes.
    """
    return {
        "made_by": f"mlx-llama4 {__version__}",
        "source": source.layout,
        "dtype": plan.recipe.dtype,
        "recipe": describe(plan.recipe),
        "bytes": plan.output_bytes,
        "parts": {
            part.part: {
                "stored_as": list(part.stored_as),
                "parameters": part.parameters,
                "bytes": part.nbytes,
                "bits_per_weight": round(part.bits_per_weight, 4),
                "relative_error": part.error,
            }
            for part in quality.parts
        },
        "tensors": {
            name: {
                "bits": packing.bits,
                "group_size": packing.group_size,
                "mode": packing.mode,
                # null: on the source's own grid
                "relative_error": quality.tensors.get(name),
            }
            for name, packing in plan.packings.items()
            if packing is not None
        },
    }


def _added(first: ErrorSums | None, second: ErrorSums) -> ErrorSums:
    error, norm = second  # a list, if the journal was read from the disk
    return (error, norm) if first is None else (first[0] + error, first[1] + norm)
