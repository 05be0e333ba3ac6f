"""`mlx-llama4 convert`: a Hugging Face checkpoint to an MLX folder."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mlx_llama4.cli import options, terminal
from mlx_llama4.errors import CheckpointError, InputError


class Dtype(StrEnum):
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


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
            metavar="N", help="4 or 8. Default: 4, unless --dtype is given.", show_default=False
        ),
    ] = None,
    group_size: Annotated[
        int,
        typer.Option("--group-size", metavar="N", help="Weights that share a scale: 32 or 64."),
    ] = 64,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="Type of what is not quantized; without --bits, of everything. "
            "Default: the checkpoint's, in 16 bits.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Convert a checkpoint to MLX, quantized or not, in little memory.

    \b
    Example:
      mlx-llama4 convert Llama-4-Scout-17B-16E-Instruct scout-4bit
    """
    if bits not in (None, 4, 8):
        raise InputError(f"--bits {bits} is not supported; use 4 or 8")
    if group_size not in (32, 64):
        raise InputError(f"--group-size {group_size} is not supported; use 32 or 64")
    terminal.import_mlx()
    from mlx_llama4.convert.recipes import Recipe
    from mlx_llama4.convert.stream import convert as run_conversion
    from mlx_llama4.convert.stream import default_dtype
    from mlx_llama4.hub import find_folder
    from mlx_llama4.memory import human_bytes
    from mlx_llama4.quantization import Quantization

    if bits is None and dtype is None:
        bits = 4
    source = find_folder(model, revision, "convert")
    recipe = Recipe(
        dtype=dtype.value if dtype else default_dtype(source),
        quantization=Quantization(group_size, bits) if bits else None,
    )
    if not (source / "tokenizer.json").is_file():
        raise CheckpointError(f"{source} has no tokenizer.json; download it too")
    with terminal.byte_progress(f"Converting {Path(model).name}") as on_progress:
        report = run_conversion(source, out, recipe, on_progress)
    terminal.note(
        f"{out}: {human_bytes(report.output_bytes)} from {human_bytes(report.source_bytes)} "
        f"in {report.seconds:.0f} s, {human_bytes(report.peak_bytes)} of memory at most"
    )
    if not report.has_vision:
        terminal.note("The checkpoint has no vision tower: the result takes text only.")
