"""`mlx-llama4 inspect`: describe a model folder, and check that it is complete."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_llama4.cli import options
from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.convert_report import zero_lines
from mlx_llama4.errors import one_line

if TYPE_CHECKING:
    from mlx_llama4.planning.inspection import Inspection
    from mlx_llama4.planning.verification import Verification

SHOWN_NAMES = 10


@terminal.reports_errors
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint, converted or not: its folder, or OWNER/NAME on the Hugging Face "
            "hub (only headers are read).",
        ),
    ],
    revision: options.Revision = None,
    experts: Annotated[
        bool, typer.Option("--experts", help="Also list the routed experts of each layer.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Read all weights: compare files with the SHA-256 that the hub has of them, and "
            "look for rows of zeros, NaN and infinity in the others. Of a repository, the files "
            "that are here.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Describe a model folder, and check that it is complete.

    Shows variant, parameters, quantization and missing tensors, and whether it can be converted.

    Exit code 1 if it is not complete, or if --verify finds that it is damaged.

    \b
    Example:
      mlx-llama4 inspect scout-4bit
    """
    from mlx_llama4.hub.repository import find_folder, is_repository
    from mlx_llama4.planning.inspection import inspect_folder, inspect_repository

    if is_repository(model) and not verify:
        found = inspect_repository(model, revision)
    else:
        found = inspect_folder(find_folder(model, revision, "inspect"))
    verified = _verify(found.folder) if verify else None
    if as_json:
        result = found.as_dict()
        if not experts:
            del result["experts"]
        if verified is not None:
            result["verification"] = asdict(verified) | {"right": verified.right}
        terminal.line(json.dumps(result, indent=2))
    else:
        _print(found)
        if experts:
            _print_experts(found)
        if verified is not None:
            _print_verification(verified)
    if not found.complete or (verified is not None and not verified.right):
        raise typer.Exit(1)


def _verify(folder: str) -> "Verification":
    from mlx_llama4.checkpoint.open import open_source
    from mlx_llama4.planning.verification import verify

    with terminal.status("Reading all weights"):
        return verify(open_source(folder))


def _line(text: str) -> None:
    """Names and values may come from a stranger's files, and be of any length."""
    terminal.line(one_line(text))


def _print_verification(verified: "Verification") -> None:
    for line in verified.wrong:
        _line(f"  {line}")
    for name in verified.not_finite[:SHOWN_NAMES]:
        _line(f"  {name} has values that are NaN or infinite; download it again")
    for line in zero_lines(verified.zero_rows):
        _line(f"  {line}")
    known = f"{verified.verified_files} of {verified.files} files have the hub's SHA-256"
    _line(f"  read: {known if verified.verified_files else 'no sums of the hub are known'}")


def _print(found: "Inspection") -> None:
    from mlx_llama4.units import human_bytes

    _line(f"{found.folder}: {found.variant}")
    _line(f"  {found.architecture}")
    _line(f"  {found.layout}, {found.quantization}")
    terminal.line()
    rows = [("part", "parameters", "bytes", "stored as")]
    rows += [
        (part.name, f"{part.parameters:,}", human_bytes(part.nbytes), ", ".join(part.stored_as))
        for part in found.parts
    ]
    rows.append(("total", f"{found.parameters:,}", human_bytes(found.nbytes), ""))
    terminal.table(rows, right=(1, 2))
    terminal.line()
    for problem, names in found.problems.items():
        if names:
            _line(f"  {problem}: {len(names)} tensors")
            for name in names[:SHOWN_NAMES]:
                _line(f"    {name}")
            if len(names) > SHOWN_NAMES:
                _line(f"    … and {len(names) - SHOWN_NAMES} more")
    if found.complete:
        terminal.line(
            f"  complete: {found.tensors:,} tensors in {found.files} file{'s' * (found.files != 1)}"
        )
    if found.obstacle is not None:
        _line(f"  cannot be converted: {found.obstacle}")
    elif found.complete:
        terminal.line("  can be converted")
    for reason, count in found.ignored.items():
        _line(f"  left out: {count:,} tensors; {reason}")
    for note in found.notes:
        _line(f"  {note}")


def _print_experts(found: "Inspection") -> None:
    from mlx_llama4.units import human_bytes

    rows = [("layer", "experts", "one", "all", "stored as", "in")]
    rows += [
        (
            str(one.layer),
            str(one.experts),
            human_bytes(one.expert_bytes),
            human_bytes(one.nbytes),
            ", ".join(one.stored_as),
            ", ".join(one.files),
        )
        for one in found.experts
    ]
    count = sum(one.experts for one in found.experts)
    total = sum(one.nbytes for one in found.experts)
    rows.append(("total", f"{count:,}", "", human_bytes(total), "", ""))
    terminal.line()
    terminal.table(rows, right=(0, 1, 2, 3))
