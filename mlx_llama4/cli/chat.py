"""`mlx-llama4 chat`: a conversation in the terminal."""

import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mlx_llama4.cli import options, terminal
from mlx_llama4.cli.memory_check import Task, check_memory, limit_to_memory
from mlx_llama4.errors import Llama4Error

if TYPE_CHECKING:
    from mlx_llama4.chat import Chat
    from mlx_llama4.prompt.image import PromptImage

HELP = """\
/image PATH   attach a picture to the next message; quote several paths, or spaces
/retry [TEXT] answer the last message again, or TEXT in its place
/undo [N]     forget the last message and its answer, or the last N
/save FILE    keep the conversation, to go on with: chat --cache FILE
/reset        forget the conversation and the pictures attached
/quit         leave (so do Ctrl-D, and Ctrl-C twice)
Ctrl-C stops an answer and keeps what is there."""


@terminal.reports_errors
def chat(
    model: options.Model,
    revision: options.Revision = None,
    system: options.System = None,
    max_tokens: options.MaxTokens = 4096,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    seed: options.Seed = None,
    cache: options.Cache = None,
    prefill_step: options.PrefillStep = None,
    kv_bits: options.KVBits = None,
    kv_group_size: options.KVGroupSize = None,
    kv_quantize_after: options.KVQuantizeAfter = None,
    experts: options.ExpertPlace = options.Where.auto,
    expert_memory: options.ExpertMemory = None,
    page_cache: options.PageCache = True,
    trace: options.Trace = None,
    force: options.Force = False,
) -> None:
    """Talk with a model; /help lists what else can be typed.

    \b
    Example:
      mlx-llama4 chat --model scout-4bit
    """
    from mlx_llama4.hub import find_folder

    terminal.import_mlx()
    sampling = options.Sampling(temperature, top_p, top_k, seed)
    caching = options.Caching(prefill_step, kv_bits, kv_group_size, kv_quantize_after)
    placing = options.expert_options(experts, expert_memory, page_cache)
    folder = find_folder(model, revision)
    chat_options = options.chat_options(folder, system, max_tokens, sampling, caching)
    held = options.open_cache(cache, folder, chat_options).tokens if cache is not None else None
    task = Task(held, kv=chat_options.kv_quantization, span=prefill_step, grows=True)
    placement = check_memory(folder, task, placing, force=force)
    if not force:
        limit_to_memory(chat_options, folder, held or 0, placement)
    with options.loaded_chat(folder, chat_options, placement, trace) as conversation:
        if cache is not None:
            conversation.load(cache)
            terminal.note(f"[{cache}: {held:,} tokens]")
        expert_cache = conversation.model.expert_cache
        if expert_cache is None:
            _talk(conversation)
            return
        if sys.stdin.isatty():
            expert_cache.warm()  # while the first question is typed
        try:
            _talk(conversation)
        finally:
            expert_cache.stop_warming()  # reading on while Python ends would fail, with a traceback


def _talk(conversation: "Chat") -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  gives input() editing and history
    if sys.stdin.isatty():
        terminal.note(HELP)
    images: list[PromptImage] = []
    while (text := _read_line()) is not None:
        command, argument = (*text.split(maxsplit=1), "", "")[:2]
        if command in ("/quit", "/exit"):
            break
        try:
            if command.startswith("/"):
                _run_command(conversation, command, argument.strip(), images)
            elif command:
                _answer(conversation, terminal.as_typed(text), images)
        except Llama4Error as error:
            terminal.note(f"error: {error}")
        except KeyboardInterrupt:
            terminal.note("[stopped]")


def _read_line() -> str | None:
    """The user's next line; None at the end of input. A second Ctrl-C in a row leaves."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    prompt = "> " if is_terminal else ""
    for last in (False, True):
        try:
            return input(prompt)
        except EOFError:
            if is_terminal:
                terminal.note("")
            return None
        except KeyboardInterrupt:
            terminal.note("")
            if not last:
                terminal.note("[Ctrl-C again, or Ctrl-D, leaves]")
    raise typer.Exit(terminal.INTERRUPTED)


def _run_command(
    conversation: "Chat", command: str, argument: str, images: list["PromptImage"]
) -> None:
    if command == "/image":
        opened = [(path, conversation.open_image(path)) for path in _paths(argument)]
        for path, image in opened:
            images.append(image)
            width, height = image.size
            tiles = "1 tile" if image.num_tiles == 1 else f"{image.num_tiles} tiles"
            terminal.note(f"[{path}: {width}×{height} pixels, {tiles}]")
    elif command == "/retry":
        _answer_again(conversation, terminal.as_typed(argument) if argument else None)
    elif command == "/undo":
        conversation.rewind(_count(argument))
        terminal.note(f"[{len(conversation.messages)} messages left]")
    elif command == "/save":
        _save(conversation, argument)
    elif command == "/reset":
        conversation.reset()
        images.clear()
        terminal.note("[conversation forgotten]")
    elif command == "/help":
        terminal.note(HELP)
    else:
        raise Llama4Error(f"unknown command {command}; /help lists them")


def _count(argument: str) -> int:
    if argument and not argument.isdecimal():
        raise Llama4Error(f"/undo takes a number, not {argument!r}")
    return int(argument or 1)


def _save(conversation: "Chat", argument: str) -> None:
    from mlx_llama4.memory import human_bytes

    if not argument:
        raise Llama4Error("give the name of a file: /save FILE")
    asked = any(message["role"] == "user" for message in conversation.messages)
    if not asked and not conversation.document:
        raise Llama4Error("nothing has been said yet that could be saved")
    path = Path(argument)
    with contextlib.suppress(RuntimeError):  # "~nobody"
        path = path.expanduser()
    nbytes = conversation.save(path)
    terminal.note(f"[{path}: {len(conversation.cache.ids):,} tokens, {human_bytes(nbytes)}]")


def _paths(argument: str) -> list[str]:
    """One path as it is, if there is such a file, else what a shell would make of it."""
    if not argument:
        raise Llama4Error("give the path of a picture: /image PATH")
    with contextlib.suppress(OSError, RuntimeError):  # too long for a path; "~nobody"
        if Path(argument).expanduser().exists():
            return [argument]
    try:
        return shlex.split(argument)
    except ValueError:  # an apostrophe that quotes nothing
        return [argument]


def _answer(conversation: "Chat", text: str, images: list["PromptImage"]) -> None:
    """Pictures stay attached until a message that has them is in the conversation."""
    spoken = len(conversation.messages)
    try:
        with terminal.Answer() as answer:
            answer.show(conversation.send(text, images, answer.on_prefill))
    finally:
        if len(conversation.messages) > spoken:
            images.clear()
    _say_if_cut_short(conversation)


def _answer_again(conversation: "Chat", text: str | None) -> None:
    with terminal.Answer() as answer:
        answer.show(conversation.retry(text, answer.on_prefill))
    _say_if_cut_short(conversation)


def _say_if_cut_short(conversation: "Chat") -> None:
    if conversation.statistics.finish_reason == "length":
        terminal.note(f"[stopped after {conversation.statistics.generated_tokens} tokens]")
