"""Print what `convert` reports: the plan before, the result after."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_llama4.cli.console import terminal

if TYPE_CHECKING:
    from mlx_llama4.convert.plan import Plan
    from mlx_llama4.convert.quality import Quality
    from mlx_llama4.convert.run import Report

SHOWN_TENSORS = 5


def print_plan(plan: "Plan", out: Path, shard_bytes: int) -> None:
    """Print the plan. shard_bytes: additional disk space for shards of the source."""
    from mlx_llama4.convert.quality import planned_quality
    from mlx_llama4.convert.recipes import describe
    from mlx_llama4.convert.write import free_bytes
    from mlx_llama4.units import human_bytes

    terminal.line(f"  {describe(plan.recipe)}")
    _print_quality(planned_quality(plan))
    free, needed = free_bytes(out), plan.output_bytes + shard_bytes
    shards = f" and {human_bytes(shard_bytes)} for shards on their way" if shard_bytes else ""
    terminal.line(
        f"  {len(plan.jobs):,} slices, {human_bytes(plan.source_bytes)} to read, "
        f"{human_bytes(plan.output_bytes)} to write{shards} ({human_bytes(free)} free), "
        f"about {human_bytes(plan.peak_bytes)} of memory at most"
    )
    if free < needed:
        terminal.line(f"  {human_bytes(needed - free)} too little disk")


def print_report(report: "Report", out: Path) -> None:
    from mlx_llama4.units import human_bytes

    _print_quality(report.quality)
    resumed = ""
    if report.resumed_bytes:
        resumed = f" ({human_bytes(report.resumed_bytes)} by an earlier run)"
    terminal.note(
        f"{out}: {human_bytes(report.output_bytes)} from {human_bytes(report.source_bytes)}"
        f"{resumed} in {report.seconds:.0f} s"
    )
    if report.redone_bytes:
        terminal.note(
            f"{human_bytes(report.redone_bytes)} of an earlier run were converted again, since "
            "their files have been replaced, moved or touched in the meantime."
        )
    if report.verified_files:
        terminal.note(
            f"{report.verified_files} of the {report.files} files read have the SHA-256 that the "
            "hub has of them"
        )
    for line in zero_lines(report.zero_rows):
        terminal.note(line)
    if not report.has_vision:
        terminal.note("The checkpoint has no vision tower: the result takes text only.")


def zero_lines(zero_rows: Mapping[str, int]) -> list[str]:
    """What to say about rows of zeros in files whose sums are not known."""
    lines = [f"{name}: {count:,} rows are all zero" for name, count in zero_rows.items()]
    if lines[SHOWN_TENSORS:]:
        lines = [*lines[:SHOWN_TENSORS], f"… and {len(lines) - SHOWN_TENSORS} tensors more"]
    if lines:
        lines.append(
            "Rows of zeros are padding, or holes that a download left. No sum of these files is "
            "known: compare their SHA-256 with those on the model's page, or download them again"
        )
    return lines


def _print_quality(quality: "Quality") -> None:
    from mlx_llama4.units import human_bytes

    rows = [("part", "stored as", "bytes", "bits a weight", "relative error")]
    for part in quality.parts:
        error = "" if part.error is None else f"{part.error:.2%}"
        stored = "; ".join(part.stored_as)
        bits = f"{part.bits_per_weight:.2f}"
        rows.append((part.part, stored, human_bytes(part.nbytes), bits, error))
    terminal.table(rows, right=(2, 3, 4))
