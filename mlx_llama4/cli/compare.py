"""`mlx-llama4 compare`: measure how far a converted model is from its original."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_llama4.cli import options
from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.console.progress import byte_progress
from mlx_llama4.errors import InputError

if TYPE_CHECKING:
    from mlx_llama4.checkpoint.open import Source
    from mlx_llama4.evaluation.comparison import Figures
    from mlx_llama4.prompt.windows import Window


@terminal.reports_errors
def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="The reference, converted or not: its folder, or OWNER/NAME on the Hugging Face "
            "hub.",
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The model to measure.")],
    text: Annotated[
        Path | None,
        typer.Option(
            "--text", "-t", metavar="FILE", help="A text to compare on.", show_default=False
        ),
    ] = None,
    image: options.Images = None,
    no_fetch: options.NoFetch = False,
    window: Annotated[
        int, typer.Option(metavar="N", min=1, help="Cut the text into windows of N tokens.")
    ] = 2048,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", metavar="N", min=1, help="How many tokens of the text to use."
        ),
    ] = 16384,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two models by the next tokens that they predict.

    Reports KL divergence, top-1 agreement and perplexity.

    Neither model has to fit into memory, and neither has to be converted.

    \b
    Examples:
      mlx-llama4 compare scout scout-4bit --text book.txt
      mlx-llama4 compare scout-8bit scout-4bit --text book.txt --image photo.jpg
    """
    terminal.import_mlx()
    from mlx_llama4.checkpoint.open import open_source
    from mlx_llama4.cli.ask_input import find_pictures
    from mlx_llama4.evaluation.comparison import check_comparable, summarize
    from mlx_llama4.evaluation.comparison import compare as compare_models
    from mlx_llama4.hub.repository import find_folder
    from mlx_llama4.opening import disable_compile_on_cpu
    from mlx_llama4.prompt.tokenizer import check_same_vocabulary

    disable_compile_on_cpu()

    if text is None and not image:
        raise InputError("nothing to compare on; give --text FILE, --image PATH or both")
    first, second = (open_source(find_folder(name, purpose="convert")) for name in (a, b))
    sources = (first, second)
    check_same_vocabulary(first.folder, second.folder)
    pictures = find_pictures(image or [])
    of_text, of_images = _windows(sources[0], text, pictures, no_fetch, window, max_tokens)
    windows = [*of_text, *of_images]
    check_comparable(*sources, windows)
    with byte_progress() as update:
        compared = compare_models(
            *sources, windows, lambda done, total: update("Comparing", done, total, 0)
        )
    parts = {"text": compared[: len(of_text)], "images": compared[len(of_text) :]}
    figures = {name: summarize(part) for name, part in parts.items() if part}
    if as_json:
        _print_json(sources, figures)
    else:
        _print(sources, figures)


def _windows(
    source: "Source",
    text: Path | None,
    pictures: "list[str | Path | bytes]",
    no_fetch: bool,
    window: int,
    max_tokens: int,
) -> "tuple[list[Window], list[Window]]":
    """Cut the text and the images into windows with the first model's tokenizer and processor."""
    from mlx_llama4.cli.ask_input import tiled
    from mlx_llama4.prompt.processor import Processor
    from mlx_llama4.prompt.tokenizer import Tokenizer
    from mlx_llama4.prompt.windows import image_windows, text_windows

    of_text: list[Window] = []
    of_images: list[Window] = []
    if text is not None:
        of_text = text_windows(text, Tokenizer.load(source.folder), window, max_tokens)
    if pictures:
        processor = Processor.load(source.folder, source.config)
        of_images = image_windows(tiled(processor, pictures, no_fetch=no_fetch), processor)
    return of_text, of_images


def _print(sources: "tuple[Source, Source]", figures: "dict[str, Figures]") -> None:
    from mlx_llama4.units import human_bytes

    for name, source in zip("AB", sources, strict=True):
        terminal.line(
            f"{name}: {source.folder}, {human_bytes(source.checkpoint.nbytes)} ({source.layout})"
        )
    terminal.line()
    columns = list(figures.values())
    rows = [("", *figures)]
    rows += [
        (name, *(cell(one) for one in columns))
        for name, cell in {
            "positions": lambda one: f"{one.positions:,}",
            "KL(A‖B), mean, in nats": lambda one: (
                f"{one.mean_divergence:.6f} ± {one.divergence_error:.6f}"
            ),
            "  median": lambda one: f"{one.median_divergence:.6f}",
            "  99th percentile": lambda one: f"{one.divergence_99th_percentile:.6f}",
            "  largest": lambda one: f"{one.max_divergence:.6f}",
            "same top token": lambda one: f"{one.top_1_agreement:.2%}",
            "perplexity of A": lambda one: f"{one.perplexity_a:,.4f}",
            "perplexity of B": lambda one: f"{one.perplexity_b:,.4f}",
            "  B / A": lambda one: f"{one.perplexity_ratio:.4f}",
        }.items()
    ]
    terminal.table(rows, right=tuple(range(1, len(columns) + 1)))


def _print_json(sources: "tuple[Source, Source]", figures: "dict[str, Figures]") -> None:
    from dataclasses import asdict

    result: dict[str, object] = {
        name: {
            "folder": str(source.folder),
            "layout": source.layout,
            "bytes": source.checkpoint.nbytes,
        }
        for name, source in zip("ab", sources, strict=True)
    }
    for name, one in figures.items():
        result[name] = asdict(one) | {"perplexity_ratio": one.perplexity_ratio}
    terminal.line(json.dumps(result, indent=2))
