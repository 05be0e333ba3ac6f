"""`mlx-llama4 chat`: a conversation in the terminal."""

import contextlib
import shlex
import sys
from typing import TYPE_CHECKING

from mlx_llama4.cli import options, terminal
from mlx_llama4.errors import Llama4Error

if TYPE_CHECKING:
    from mlx_llama4.chat import Chat
    from mlx_llama4.prompt.image import TiledImage

HELP = """\
/image PATH   attach a picture to the next message
/reset        forget the conversation
/quit         leave (so does Ctrl-D)
Ctrl-C stops an answer and keeps what is there."""


@terminal.reports_errors
def chat(
    model: options.Model,
    system: options.System = None,
    max_tokens: options.MaxTokens = 4096,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: options.Seed = None,
) -> None:
    """Talk with a model; /help lists what else can be typed.

    Example:  mlx-llama4 chat --model scout-4bit
    """
    sampling = options.Sampling(temperature, top_p, top_k, seed)
    conversation = options.load_chat(model, system, max_tokens, sampling)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives input() editing and history
    if sys.stdin.isatty():
        terminal.note(HELP)
    images: list[TiledImage] = []
    while (text := _read_line()) is not None:
        command, _, argument = text.strip().partition(" ")
        if not command:
            continue
        if command in ("/quit", "/exit"):
            break
        try:
            if command.startswith("/"):
                _run_command(conversation, command, argument, images)
            else:
                _answer(conversation, text, images)
                images.clear()
        except Llama4Error as error:
            terminal.note(f"error: {error}")


def _read_line() -> str | None:
    """The user's next line; None at the end of input."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        if sys.stdin.isatty():
            terminal.note("")
        return None


def _run_command(
    conversation: "Chat", command: str, argument: str, images: list["TiledImage"]
) -> None:
    if command == "/image":
        for path in shlex.split(argument) or [""]:
            if not path:
                raise Llama4Error("give the path of a picture: /image PATH")
            image = conversation.open_image(path)
            images.append(image)
            width, height = image.size
            tiles = "1 tile" if len(image.tiles) == 1 else f"{len(image.tiles)} tiles"
            terminal.note(f"[{path}: {width}×{height} pixels, {tiles}]")
    elif command == "/reset":
        conversation.reset()
        images.clear()
        terminal.note("[conversation forgotten]")
    elif command == "/help":
        terminal.note(HELP)
    else:
        raise Llama4Error(f"unknown command {command}; /help lists them")


def _answer(conversation: "Chat", text: str, images: list["TiledImage"]) -> None:
    try:
        with contextlib.closing(conversation.send(text, images)) as pieces:
            for piece in pieces:
                terminal.stream(piece)
        terminal.line()
    except KeyboardInterrupt:
        terminal.line()
        terminal.note("[stopped]")
    if conversation.statistics.finish_reason == "length":
        terminal.note(f"[stopped after {conversation.statistics.generated_tokens} tokens]")
