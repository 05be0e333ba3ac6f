"""`mlx-llama4 convert`: turn any Llama 4 checkpoint into an MLX folder."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_llama4.cli import options
from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.console.progress import byte_progress
from mlx_llama4.cli.convert_report import print_plan, print_report
from mlx_llama4.cli.known_models import remember
from mlx_llama4.errors import InputError

if TYPE_CHECKING:
    from mlx_llama4.checkpoint.open import Source
    from mlx_llama4.convert.plan import Plan
    from mlx_llama4.convert.recipes import Recipe
    from mlx_llama4.convert.run import Settings
    from mlx_llama4.hub.remote_shards import RemoteShards


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
    model: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint: its folder, or OWNER/NAME on the Hugging Face hub.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to create.")],
    revision: options.Revision = None,
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="2, 3, 4, 5, 6 or 8; 16 packs nothing. Default: those of the source, or 4.",
            show_default=False,
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(
            "--group-size",
            metavar="N",
            help="How many weights share a scale: 32, 64 or 128. Default: 64.",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(help="Number format of packed weights. Default: affine.", show_default=False),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="Type of unpacked weights; without other options, of all weights. "
            "Default: the source's, in 16 bits.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="mixed-LOW-HIGH",
            help="Bits for routed experts and for the rest, such as mixed-3-6.",
            show_default=False,
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=BITS[:GROUP[:MODE]]",
            help="Bits for modules whose names match; may be repeated, the last match wins.",
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
        bool, typer.Option("--search", help="Search for scales with less error; takes much longer.")
    ] = False,
    shard_size: Annotated[
        str, typer.Option("--shard-size", metavar="SIZE", help="Size of the largest file.")
    ] = "5GB",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and stop.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the result back from the disk.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard the work of an interrupted run.")
    ] = False,
    while_downloading: Annotated[
        bool,
        typer.Option(
            "--while-downloading",
            help="Download shard by shard and delete each after use: the disk never holds all.",
        ),
    ] = False,
    keep_source: Annotated[
        bool, typer.Option("--keep-source", help="With --while-downloading: delete no shards.")
    ] = False,
    upload: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Afterwards, upload the result to this repository on the hub.",
            show_default=False,
        ),
    ] = None,
    force: options.Force = False,
) -> None:
    """Convert a checkpoint to MLX, in little memory.

    If it is interrupted (Ctrl-C, a full disk, a kill), the same command continues where it stopped.

    \b
    Examples:
      mlx-llama4 convert scout scout-4bit --while-downloading
      mlx-llama4 convert Llama-4-Scout-17B-16E-Instruct scout-4bit
      mlx-llama4 convert scout scout-mixed --recipe mixed-3-6
      mlx-llama4 convert scout scout-60 --target-size 60GB --dry-run
    """
    terminal.import_mlx()
    from mlx_llama4.convert.plan import make_plan
    from mlx_llama4.convert.recipes import choose_recipe, parse_rule
    from mlx_llama4.convert.run import Settings
    from mlx_llama4.convert.write import check_destination, resolve_destination
    from mlx_llama4.hub.released import full_name
    from mlx_llama4.planning.admission import admit_conversion
    from mlx_llama4.units import parse_bytes

    if keep_source and not while_downloading:
        raise InputError("--keep-source goes with --while-downloading; leave it out")
    shard_bytes = parse_bytes(shard_size)
    if not shard_bytes:
        raise InputError("--shard-size 0 leaves no room for anything; write it like 5GB")
    settings = Settings(shard_bytes, restart, verify)
    target_bytes = None if target_size is None else parse_bytes(target_size)
    rules = tuple(map(parse_rule, rule or ()))
    wanted = partial(
        choose_recipe,
        dtype=dtype.value if dtype else None,
        bits=bits,
        group_size=group_size,
        mode=mode.value if mode else None,
        mixed=recipe,
        rules=rules,
        search=search,
    )
    out, model = resolve_destination(out), str(full_name(model, "convert"))
    # Refuse what can be refused without the source before downloading it.
    wanted(source_dtype="bfloat16", source_is_packed=False)
    check_destination(out, 0)
    if target_bytes is not None and (bits or recipe or mode not in (None, Mode.affine)):
        raise InputError("--target-size chooses the bits; leave out --bits, --recipe, --mode")
    if target_bytes is not None and while_downloading:
        raise InputError("--target-size looks at all weights first; omit --while-downloading")
    needs_weights = target_bytes is not None or not dry_run
    source, shards = _open(model, revision, out, while_downloading, keep_source, needs_weights)
    chosen = wanted(source_dtype=source.dtype, source_is_packed=source.is_packed)
    if target_bytes is not None:
        chosen = _fitted(source, chosen, target_bytes)
    if search and not chosen.packs_affine:
        raise InputError(
            "--search is for affine packing, and nothing is newly packed that way; omit it"
        )
    plan = make_plan(source, chosen)
    admitted = admit_conversion(
        source.config,
        plan.packings,
        plan.recipe.dtype,
        peak_bytes=plan.peak_bytes,
        searches=plan.recipe.search,
        force=force,
    )
    for note in (*source.notes, *admitted):
        terminal.note(note)
    files = _tokenizer_files(source.folder)
    if upload is not None:
        from mlx_llama4.hub.upload import check_upload

        check_upload(upload, source.folder)
    if dry_run:
        terminal.line(f"{model}: {source.layout}")
        print_plan(plan, out, _shard_bytes(plan, shards))
        return
    _run(model, source, plan, out, shards, settings, files | _card(model, plan, out, upload))
    remember(out)
    if upload is not None:
        _upload(out, upload)


def _open(
    model: str,
    revision: str | None,
    out: Path,
    while_downloading: bool,
    keep_source: bool,
    needs_weights: bool,
) -> "tuple[Source, RemoteShards | None]":
    """Open the source. Returns it, and its shards if they must still be downloaded."""
    from mlx_llama4.checkpoint.open import open_source
    from mlx_llama4.hub.repository import find_folder, is_repository

    if not while_downloading:
        if not needs_weights and is_repository(model) and (source := _headers(model, revision)):
            return source, None
        return open_source(find_folder(model, revision, "convert")), None
    if not is_repository(model):
        raise InputError(f"--while-downloading: {model} is a folder, not a repository on the hub")
    from mlx_llama4.hub.remote import open_remote
    from mlx_llama4.hub.remote_shards import RemoteShards

    remote = open_remote(model, revision, out.with_name(f"{out.name}.downloads"))
    return open_source(remote.checkpoint.folder, remote.checkpoint), RemoteShards(
        remote, keep_source
    )


def _headers(repository: str, revision: str | None) -> "Source | None":
    """Open a repository by its headers; None for Meta's layout, which has no headers to fetch."""
    from mlx_llama4.checkpoint.open import open_source
    from mlx_llama4.hub.remote import open_remote
    from mlx_llama4.hub.repository import download_side_files

    folder = download_side_files(repository, revision)
    if not (folder / "config.json").is_file():
        return None
    return open_source(folder, open_remote(repository, folder.name).checkpoint)


def _fitted(source: "Source", recipe: "Recipe", target_bytes: int) -> "Recipe":
    from dataclasses import replace

    from mlx_llama4.convert.sizing import fit_to_size
    from mlx_llama4.quantization import packing

    if recipe.quantization is None:
        recipe = replace(recipe, quantization=packing(None, None, None), keeps=False)
    with terminal.status("Measuring the errors of all bits"):
        return fit_to_size(source, recipe, target_bytes)


def _run(
    model: str,
    source: "Source",
    plan: "Plan",
    out: Path,
    shards: "RemoteShards | None",
    settings: "Settings",
    files: dict[str, str],
) -> None:
    from mlx_llama4.convert.run import run
    from mlx_llama4.convert.source_files import LocalShards
    from mlx_llama4.convert.write import check_destination, partial_folder

    check_destination(out, plan.output_bytes + _shard_bytes(plan, shards))
    terminal.note(f"{model}: {source.layout}")
    try:
        with byte_progress() as update:
            report = run(
                source,
                plan,
                out,
                shards or LocalShards(),
                lambda now: update(now.doing, now.done, now.total, now.resumed),
                settings,
                files,
            )
    except KeyboardInterrupt:
        if partial_folder(out).is_dir():  # else nothing was done yet
            terminal.note("what is done is kept; the same command continues from there")
        raise
    finally:
        if shards is not None:
            shards.remote.close()
    if shards is not None and not shards.keep:
        shards.remote.discard()
    print_report(report, out)


def _shard_bytes(plan: "Plan", shards: "RemoteShards | None") -> int:
    """Bytes of disk that the source will need during the conversion, beyond what is there."""
    return shards.room_bytes([job.files for job in plan.jobs]) if shards else 0


def _tokenizer_files(source: Path) -> dict[str, str]:
    """Files made from Meta's tokenizer.model; none if there is a tokenizer.json to copy.

    Reads either one, so that a damaged file is noticed before hours of work, not after.
    """
    from mlx_llama4.prompt.tiktoken_file import tokenizer_files
    from mlx_llama4.prompt.tokenizer import Tokenizer

    if not (source / "tokenizer.json").is_file() and (source / "tokenizer.model").is_file():
        return tokenizer_files(source / "tokenizer.model")
    Tokenizer.load(source)
    return {}


def _card(model: str, plan: "Plan", out: Path, upload: str | None) -> dict[str, str]:
    """README.md and NOTICE, which the licence demands from anyone who passes the folder on."""
    from mlx_llama4.convert.card import NOTICE, NOTICE_NAME, Conversion, model_card
    from mlx_llama4.convert.quality import planned_quality
    from mlx_llama4.convert.recipes import describe
    from mlx_llama4.hub.repository import is_repository

    parts = planned_quality(plan).parts
    made = Conversion(
        name=upload.split("/")[-1] if upload else out.name,
        source=model if is_repository(model) else Path(model).resolve().name,
        recipe=describe(plan.recipe),
        stored_as={part.part: "; ".join(part.stored_as) for part in parts},
        is_quantized=any(plan.packings.values()),
        has_vision=any(part.part == "vision tower" for part in parts),
    )
    return {"README.md": model_card(made, upload), NOTICE_NAME: NOTICE}


def _upload(out: Path, repository: str) -> None:
    from mlx_llama4.hub.upload import upload

    terminal.note(f"Uploading {out} to {repository}, which only you can see until you publish it")
    terminal.note(f"uploaded: {upload(out, repository)}")
