"""`mlx-llama4 convert`: any Llama 4 checkpoint to an MLX folder."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_llama4.cli import terminal
from mlx_llama4.cli.progress import byte_progress
from mlx_llama4.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from mlx_llama4.convert.formats import Source
    from mlx_llama4.convert.plan import Plan
    from mlx_llama4.convert.quality import Quality
    from mlx_llama4.convert.recipes import Recipe
    from mlx_llama4.convert.stream import Report


class Dtype(StrEnum):
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class Mode(StrEnum):
    affine = "affine"
    mxfp4 = "mxfp4"
    nvfp4 = "nvfp4"
    mxfp8 = "mxfp8"


@terminal.reports_errors
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder of a Llama 4 checkpoint.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create.")],
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="2, 3, 4, 5, 6 or 8; 16 packs nothing. Default: as the source is packed, or 4.",
            show_default=False,
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            "--group-size",
            metavar="N",
            help="Weights that share a scale: 32, 64 or 128. Default: 64.",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(help="Number format of what is packed. Default: affine.", show_default=False),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="Type of what is not packed; alone, of everything. "
            "Default: the source's, in 16 bits.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="mixed-LOW-HIGH",
            help="Bits of routed experts and of the rest, such as mixed-3-6.",
            show_default=False,
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=BITS[:GROUP[:MODE]]",
            help="For modules of matching names; may be repeated, the last match wins.",
            show_default=False,
        ),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option(
            "--target-size",
            metavar="SIZE",
            help="Choose the bits of each module so that the weights fit, such as 60GB.",
            show_default=False,
        ),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Search scales with less error; takes much longer.")
    ] = False,
    shard_size: Annotated[
        str, typer.Option("--shard-size", metavar="SIZE", help="Largest file.")
    ] = "5GB",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and stop.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the result back from the disk.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an interrupted run has done.")
    ] = False,
) -> None:
    """Convert a checkpoint to MLX, in little memory.

    If it is stopped, by Ctrl-C, a full disk or a kill, the same command goes on where it was.

    \b
    Examples:
      mlx-llama4 convert Llama-4-Scout-17B-16E-Instruct scout-4bit
      mlx-llama4 convert scout scout-mixed --recipe mixed-3-6
      mlx-llama4 convert scout scout-60 --target-size 60GB --dry-run
    """
    terminal.import_mlx()
    from mlx_llama4.convert.formats import open_source
    from mlx_llama4.convert.local import LocalShards
    from mlx_llama4.convert.plan import make_plan
    from mlx_llama4.convert.stream import Settings, run
    from mlx_llama4.convert.write import check_destination, resolve_destination
    from mlx_llama4.memory import parse_bytes

    settings = Settings(parse_bytes(shard_size), restart, verify)
    target_bytes = None if target_size is None else parse_bytes(target_size)
    opened = open_source(source)
    chosen = _recipe(opened, bits, group_size, mode, dtype, recipe, rule or [], search)
    if target_bytes is not None:
        if bits is not None or recipe is not None or mode not in (None, Mode.affine):
            raise InputError("--target-size chooses the bits; leave out --bits, --recipe, --mode")
        chosen = _fitted(opened, chosen, target_bytes)
    plan = make_plan(opened, chosen)
    files = _tokenizer_files(source)
    if dry_run:
        terminal.line(f"{source}: {opened.layout}")
        _print_plan(plan, out)
        return
    out = resolve_destination(out)
    check_destination(out, plan.output_bytes)
    terminal.note(f"{source}: {opened.layout}")
    try:
        with byte_progress() as update:
            report = run(
                opened,
                plan,
                out,
                LocalShards(),
                lambda now: update(now.doing, now.done, now.total, now.resumed),
                settings,
                files,
            )
    except KeyboardInterrupt:
        terminal.note("what is done is kept; the same command goes on from there")
        raise
    _print_report(report, out)


def _tokenizer_files(source: Path) -> dict[str, str]:
    """What is made of Meta's tokenizer.model; nothing where there is a tokenizer.json to copy."""
    if (source / "tokenizer.json").is_file():
        return {}
    if not (source / "tokenizer.model").is_file():
        raise CheckpointError(f"{source} has no tokenizer.json; download it too")
    from mlx_llama4.prompt.tiktoken_file import tokenizer_files

    return tokenizer_files(source / "tokenizer.model")


def _recipe(
    source: "Source",
    bits: int | None,
    group_size: int | None,
    mode: Mode | None,
    dtype: Dtype | None,
    named: str | None,
    rules: list[str],
    search: bool,
) -> "Recipe":
    from mlx_llama4.convert import recipes

    kind = dtype.value if dtype else source.dtype
    parsed = tuple(map(recipes.parse_rule, rules))
    packs = (bits, mode, group_size) != (None, None, None)
    if named is not None:
        if bits is not None or mode not in (None, Mode.affine):
            raise InputError("--recipe says the bits; leave out --bits and --mode")
        low, high = (recipes.packing(one, group_size, None) for one in recipes.parse_mixed(named))
        return recipes.Recipe(kind, low, high, rules=parsed, search=search)
    if bits == recipes.UNPACKED_BITS or (dtype is not None and not packs):
        return recipes.Recipe(kind, None, rules=parsed, search=search)
    if not packs and source.is_packed:
        return recipes.Recipe(kind, None, keeps=True, rules=parsed, search=search)
    packing = recipes.packing(bits, group_size, mode.value if mode else None)
    return recipes.Recipe(kind, packing, rules=parsed, search=search)


def _fitted(source: "Source", recipe: "Recipe", target_bytes: int) -> "Recipe":
    from dataclasses import replace

    from mlx_llama4.convert.recipes import packing
    from mlx_llama4.convert.sizing import fit_to_size

    if recipe.quantization is None:
        recipe = replace(recipe, quantization=packing(None, None, None), keeps=False)
    with terminal.status("Measuring the errors of all bits"):
        return fit_to_size(source, recipe, target_bytes)


def _print_plan(plan: "Plan", out: Path) -> None:
    from mlx_llama4.convert.quality import planned_quality
    from mlx_llama4.convert.write import free_bytes
    from mlx_llama4.memory import human_bytes

    _print_quality(planned_quality(plan))
    free = free_bytes(out)
    terminal.line(
        f"  {len(plan.jobs):,} slices, {human_bytes(plan.source_bytes)} to read, "
        f"{human_bytes(plan.output_bytes)} to write ({human_bytes(free)} free), "
        f"{human_bytes(plan.peak_bytes)} of memory at most"
    )
    if free < plan.output_bytes:
        terminal.line(f"  {human_bytes(plan.output_bytes - free)} too little disk")


def _print_report(report: "Report", out: Path) -> None:
    from mlx_llama4.memory import human_bytes

    _print_quality(report.quality)
    resumed = ""
    if report.resumed_bytes:
        resumed = f" ({human_bytes(report.resumed_bytes)} by an earlier run)"
    terminal.note(
        f"{out}: {human_bytes(report.output_bytes)} from {human_bytes(report.source_bytes)}"
        f"{resumed} in {report.seconds:.0f} s"
    )
    if not report.has_vision:
        terminal.note("The checkpoint has no vision tower: the result takes text only.")


def _print_quality(quality: "Quality") -> None:
    from mlx_llama4.memory import human_bytes

    rows = [("part", "stored as", "bytes", "bits a weight", "relative error")]
    for part in quality.parts:
        error = "" if part.error is None else f"{part.error:.2%}"
        stored = "; ".join(part.stored_as)
        bits = f"{part.bits_per_weight:.2f}"
        rows.append((part.part, stored, human_bytes(part.nbytes), bits, error))
    terminal.table(rows, right=(2, 3, 4))
