"""Packs one slice: decoded rows → bytes of the output tensors, and their error."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_llama4.checkpoint.arrays import misfit
from mlx_llama4.checkpoint.sources import PackedRows, Plain, dense
from mlx_llama4.convert.plan import Job, Plan
from mlx_llama4.convert.search import search_affine
from mlx_llama4.errors import RunError
from mlx_llama4.files.mlx_arrays import array_bytes
from mlx_llama4.quantization import Quantization

# Errors are measured on every n-th row. A slice has millions of values, so the figure is reliable;
# measuring all of them would take twice as long as packing.
MEASURED_STRIDE = 16
LEAST_MEASURED_ROWS = 64

# (sum of squared differences, sum of squares) over the rows measured
ErrorSums = tuple[float, float]


@dataclass(frozen=True)
class PackedSlice:
    """The result of one job."""

    parts: dict[str, memoryview]  # output tensor → its rows' bytes
    # Model tensor → its error, if its values or the scales of its grid were rounded; may be 0.
    errors: dict[str, ErrorSums]


def pack(plan: Plan, job: Job, data: list[np.ndarray]) -> PackedSlice:
    """Decodes and packs the rows of one job. Raises RunError for values that the recipe's dtype
    cannot hold, or whose range no scale can hold.
    """
    decoded = job.source.decode(data, job.start, job.stop)
    data.clear()
    parts: dict[str, mx.array] = {}
    sums: dict[str, tuple[mx.array, mx.array]] = {}
    finite: list[mx.array] = []
    dtype = getattr(mx, plan.recipe.dtype)
    for name, rows in zip(job.source.targets, decoded, strict=True):
        packing = plan.packings[name]
        if packing is not None and isinstance(rows, PackedRows) and rows.quantization == packing:
            kept = _on_its_grid(rows, dtype)
            parts.update(_named(name, kept))
            if rows.biases is not None and {rows.scales.dtype, rows.biases.dtype} != {dtype}:
                sums[name] = _error_sums(rows, kept)
            continue
        values = dense(rows).astype(dtype)
        if not isinstance(
            job.source, Plain
        ):  # reading checked plain values, but only the factors of others
            finite.append(mx.isfinite(values).all())
        if packing is None:
            parts[name] = values
            continue
        packed = quantize(values, packing, plan.recipe.search)
        parts.update(_named(name, packed))
        sums[name] = _error_sums(values, packed)
    del decoded
    mx.eval(parts, sums, finite)
    if not all(one.item() for one in finite):
        raise misfit(job.tensors[0], plan.recipe.dtype)
    _check_finite(parts, job)
    errors = {name: (float(error), float(norm)) for name, (error, norm) in sums.items()}
    return PackedSlice({name: array_bytes(array) for name, array in parts.items()}, errors)


def quantize(rows: mx.array, packing: Quantization, search: bool) -> PackedRows:
    """Packs rows, float [..., in]. search: look for the scales with the least error."""
    if search and packing.mode == "affine":
        return search_affine(rows, packing)
    weight, scales, *biases = mx.quantize(rows, packing.group_size, packing.bits, mode=packing.mode)
    return PackedRows(weight, scales, biases[0] if biases else None, packing)


def measured_errors(rows: mx.array, packing: Quantization, search: bool) -> ErrorSums:
    """The error of packing these rows, [n, in]."""
    error, norm = _error_sums(rows, quantize(rows, packing, search))
    return float(error), float(norm)


def relative_error(sums: ErrorSums) -> float:
    """Root mean square of the differences, divided by that of the values."""
    error, norm = sums
    return (error / norm) ** 0.5 if norm else 0.0


def _on_its_grid(rows: PackedRows, dtype: mx.Dtype) -> PackedRows:
    if rows.biases is None:
        return rows
    scales, biases = rows.scales.astype(dtype), rows.biases.astype(dtype)
    return PackedRows(rows.weight, scales, biases, rows.quantization)


def _named(name: str, rows: PackedRows) -> dict[str, mx.array]:
    module = name.removesuffix(".weight")
    parts = {name: rows.weight, f"{module}.scales": rows.scales}
    return parts if rows.biases is None else parts | {f"{module}.biases": rows.biases}


def _check_finite(parts: dict[str, mx.array], job: Job) -> None:
    """Raises RunError for infinite scales, which values of too wide a range get."""
    for name, part in parts.items():
        if name.endswith((".scales", ".biases")) and not mx.isfinite(part).all().item():
            stored = job.tensors[0]
            raise RunError(
                f"{stored.file}: {stored.name} has values too large to be packed; "
                "leave it unpacked by a --rule, or download it again"
            )


def _error_sums(exact: mx.array | PackedRows, packed: PackedRows) -> tuple[mx.array, mx.array]:
    values = _sampled(exact)
    difference = _sampled(packed) - values
    return (difference * difference).sum(), (values * values).sum()


def _sampled(rows: mx.array | PackedRows) -> mx.array:
    """Every n-th row, float32."""
    height = (rows.weight if isinstance(rows, PackedRows) else rows).shape[-2]
    stride = min(MEASURED_STRIDE, max(1, height // LEAST_MEASURED_ROWS))
    every = (..., slice(None, None, stride), slice(None))
    if not isinstance(rows, PackedRows):
        return rows[every].astype(mx.float32)
    biases = None if rows.biases is None else rows.biases[every]
    sample = PackedRows(rows.weight[every], rows.scales[every], biases, rows.quantization)
    return sample.dense()
