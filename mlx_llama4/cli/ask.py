"""`mlx-llama4 ask`: one question, one answer."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_llama4.cli import options, terminal
from mlx_llama4.errors import PromptError

if TYPE_CHECKING:
    from mlx_llama4.chat import Chat
    from mlx_llama4.prompt.image import TiledImage


@terminal.reports_errors
def ask(
    question: Annotated[
        str | None,
        typer.Argument(
            metavar="[QUESTION]", help="Without it, standard input is read.", show_default=False
        ),
    ] = None,
    *,
    model: options.Model,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            "-i",
            help="A picture; give it once for each.",
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: the answer and statistics.")
    ] = False,
    system: options.System = None,
    max_tokens: options.MaxTokens = 4096,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: options.Seed = None,
) -> None:
    """Ask one question, with any number of pictures.

    Example:  mlx-llama4 ask "What does the sign say?" --model scout-4bit --image sign.jpg
    """
    from mlx_llama4.prompt.image import open_image

    text = question if question is not None else _read_standard_input()
    # All that can be refused is, before the weights are read.
    if not text.strip() and not image:
        raise PromptError("the question is empty")
    pictures = [open_image(path) for path in image or ()]
    sampling = options.Sampling(temperature, top_p, top_k, seed)
    chat = options.load_chat(model, system, max_tokens, sampling)
    images = [chat.open_image(picture) for picture in pictures]
    if as_json:
        _answer_json(chat, text, images)
    else:
        _answer(chat, text, images)


def _answer(chat: "Chat", text: str, images: list["TiledImage"]) -> None:
    last = ""
    try:
        with contextlib.closing(chat.send(text, images)) as pieces:
            for piece in pieces:
                terminal.stream(piece)
                last = piece
    finally:
        if last and not last.endswith("\n"):
            terminal.line()
    if chat.statistics.finish_reason == "length":
        terminal.note(f"(stopped after {chat.statistics.generated_tokens} tokens)")


def _answer_json(chat: "Chat", text: str, images: list["TiledImage"]) -> None:
    pieces: list[str] = []
    interrupted = False
    try:
        pieces.extend(chat.send(text, images))
    except KeyboardInterrupt:
        interrupted = True
    statistics = {
        name: value
        for name, value in dataclasses.asdict(chat.statistics).items()
        if not name.startswith("_")
    }
    if interrupted:
        statistics["finish_reason"] = "interrupted"
    terminal.line(json.dumps({"text": "".join(pieces), **statistics}, ensure_ascii=False))
    if interrupted:
        raise typer.Exit(terminal.INTERRUPTED)


def _read_standard_input() -> str:
    if sys.stdin.isatty():
        raise typer.BadParameter("give a question, or pipe one in", param_hint="QUESTION")
    return sys.stdin.read()
