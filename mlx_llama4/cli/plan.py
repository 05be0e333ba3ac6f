"""`mlx-llama4 plan`: find the model that suits a machine, and show the memory it takes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_llama4.cli import options
from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.plan_report import plan_json, print_announced, print_plan
from mlx_llama4.errors import InputError

if TYPE_CHECKING:
    from mlx_llama4.checkpoint.matching import Matching
    from mlx_llama4.planning.machine import Machine
    from mlx_llama4.planning.planner import Subject

BEHEMOTH = "behemoth"
MOST_IMAGES = 10_000
LEAST_MEMORY = 2**30


@terminal.reports_errors
def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|scout|maverick|guard|behemoth]",
            help="A checkpoint, converted or not: its folder, or OWNER/NAME on the Hugging Face "
            "hub (only headers are read). Or a release, by its published sizes. Default: the best "
            "release for this memory.",
            show_default=False,
        ),
    ] = None,
    revision: options.Revision = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Plan for a Mac with this much memory, such as 128GB. Default: this machine.",
            show_default=False,
        ),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Tokens of prompt and answer; K is 1,024 and M its square, as the family counts. "
            "Default: 128K.",
            show_default=False,
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Bits a weight: 2, 3, 4, 5, 6, 8 or 16. Default: as they are stored, else 4, or "
            "3 where only that fits.",
            show_default=False,
        ),
    ] = None,
    kv_bits: Annotated[
        int,
        typer.Option(
            "--kv-bits", metavar="N", help="Bits of the global layers' keys and values: 4, 8, 16."
        ),
    ] = 16,
    kv_group_size: Annotated[
        int,
        typer.Option("--kv-group-size", metavar="N", help="How many of them share a scale."),
    ] = 64,
    images: Annotated[
        int,
        typer.Option(metavar="N", help="Pictures in the prompt, each with the most tiles."),
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find the model that suits this Mac, and show the memory it takes.

    The first line is the verdict, with the command to type next. The numbers follow.

    \b
    Examples:
      mlx-llama4 plan
      mlx-llama4 plan scout --memory 128GB --context 1M --bits 4 --kv-bits 8
      mlx-llama4 plan scout-4bit
    """
    from mlx_llama4.planning.machine import mac, parse_memory, this_machine
    from mlx_llama4.planning.plan_request import (
        PlanRequest,
        judged,
        plan_for,
        release_subject,
    )
    from mlx_llama4.planning.planner import parse_tokens
    from mlx_llama4.planning.verdict import best_release
    from mlx_llama4.quantization import UNPACKED_BITS, KVQuantization

    if not 0 <= images <= MOST_IMAGES:
        raise InputError(f"--images {images}: from 0 to {MOST_IMAGES:,} pictures can be planned")
    machine = this_machine() if memory is None else mac(_sensible(parse_memory(memory), memory))
    packed = KVQuantization(8 if kv_bits == UNPACKED_BITS else kv_bits, kv_group_size)
    asked = PlanRequest(
        None if context is None else parse_tokens(context),
        bits,
        None if kv_bits == UNPACKED_BITS else packed,
        kv_group_size,
        images,
    )
    if model == BEHEMOTH and not Path(model).exists():
        print_announced(machine, bits, as_json)
        return
    if model is None:
        model = best_release(lambda name: plan_for(release_subject(name, machine), machine, asked))
    subject, matching = _open(model, revision, machine)
    made, streaming, verdict = judged(model, subject, matching, machine, asked)
    if as_json:
        terminal.line(json.dumps(plan_json(made, streaming, verdict), indent=2))
    else:
        print_plan(made, streaming, verdict, is_this_machine=memory is None)


def _sensible(memory: int, typed: str) -> int:
    """Refuse a memory size without its unit: no Mac has 128 bytes."""
    if memory < LEAST_MEMORY:
        raise InputError(f"--memory {typed}: a Mac has more; write it with its unit, like 128GB")
    return memory


def _open(
    model: str, revision: str | None, machine: "Machine"
) -> tuple["Subject", "Matching | None"]:
    """Open what is to be planned. Returns it, and its stored tensors if there are files."""
    from mlx_llama4.hub.repository import find_folder, is_repository
    from mlx_llama4.planning.plan_request import release_subject
    from mlx_llama4.planning.planner import Subject, dtype_bytes, stored_weights
    from mlx_llama4.planning.releases import RELEASES

    if model in RELEASES and revision is None and not Path(model).exists():
        return release_subject(model, machine), None
    from mlx_llama4.checkpoint.open import open_source
    from mlx_llama4.hub.remote import open_remote

    if is_repository(model):
        checkpoint = open_remote(model, revision).checkpoint
        source = open_source(checkpoint.folder, checkpoint)
    else:
        if revision is None and "/" not in model and not Path(model).exists():
            names = ", ".join((*RELEASES, BEHEMOTH))
            raise InputError(
                f"{model} does not exist; give a model folder, a repository of the hub as "
                f"OWNER/NAME, or one of {names}"
            )
        source = open_source(find_folder(model, revision))
    source.matching.check(source.folder)
    width = dtype_bytes(source.config.dtype, machine)
    runs = source.is_converted
    stored = stored_weights(source.matching, width) if runs else None
    return Subject(model, source.config, width, stored), source.matching
