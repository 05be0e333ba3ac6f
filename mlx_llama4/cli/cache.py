"""`mlx-llama4 cache`: read a long document once, for all questions about it."""

import contextlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_llama4.cli import options
from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.markdown.answer import Answer
from mlx_llama4.cli.model_name import open_model
from mlx_llama4.errors import CheckpointError, InputError, Llama4Error, PromptError

if TYPE_CHECKING:
    from mlx_llama4.chat import Chat, ChatOptions
    from mlx_llama4.opening import ModelFolder
    from mlx_llama4.planning.admission import Task
    from mlx_llama4.prompt.image import PromptImage


@terminal.reports_errors
def cache(
    prompt_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PROMPT_FILE]",
            help="A UTF-8 text file; - reads standard input. Optional if there are pictures.",
            show_default=False,
        ),
    ] = None,
    *,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="The file to write.", show_default=False),
    ],
    model: options.Model = None,
    revision: options.Revision = None,
    image: options.Images = None,
    no_fetch: options.NoFetch = False,
    small: Annotated[
        bool,
        typer.Option(
            "--small",
            help="Write a smaller file: leave out what can be recomputed from less than a chunk.",
        ),
    ] = False,
    system: options.System = None,
    prefill_step: options.PrefillStep = None,
    kv_bits: options.KVBits = None,
    kv_group_size: options.KVGroupSize = None,
    kv_quantize_after: options.KVQuantizeAfter = None,
    experts: options.ExpertPlace = options.Where.auto,
    expert_memory: options.ExpertMemory = None,
    page_cache: options.PageCache = True,
    force: options.Force = False,
) -> None:
    """Read a document and pictures once, for all questions about them.

    The model's keys and values are saved to a file, for `--cache` of ask and chat.

    Ctrl-C, or closing the terminal, keeps what was read: the same command continues from there.

    \b
    Example:
      mlx-llama4 cache book.txt --model scout-4bit --kv-bits 8 -o book.safetensors
      mlx-llama4 ask "Who did it?" --model scout-4bit --cache book.safetensors
    """
    from mlx_llama4.cache.prompt_file import check_prompt_place
    from mlx_llama4.cli.ask_input import STANDARD_INPUT, find_pictures, tiled
    from mlx_llama4.generation.settings import GenerationSettings

    terminal.import_mlx()
    if str(prompt_file) == STANDARD_INPUT in (image or []):
        raise InputError("standard input cannot be both the text and a picture; name one file")
    text, pictures = _read_text(prompt_file), find_pictures(image or [])
    if not text.strip() and not image:
        empty = "" if prompt_file is None else f"{prompt_file} is empty; "
        raise PromptError(f"{empty}give a text to read, or pictures with --image")
    check_prompt_place(out)
    caching = options.Caching(prefill_step, kv_bits, kv_group_size, kv_quantize_after)
    placing = options.expert_options(experts, expert_memory, page_cache)
    folder = open_model(model, revision)
    chat_options = options.chat_options(folder, system, GenerationSettings(), caching)
    chat_options.prefix_bytes = 0  # nothing comes after it
    images = tiled(folder.processor, pictures, no_fetch=no_fetch)
    task = _check(folder, text, images, chat_options, out, small)
    placement = options.place_model(folder, task, placing, force=force)
    chat = options.load_chat(folder, chat_options, placement)
    unfinished = out.with_name(out.name + ".unfinished")
    if unfinished.is_file():
        _resume(chat, unfinished)
    for number in (signal.SIGTERM, signal.SIGHUP):  # for example when the terminal closes
        signal.signal(number, signal.default_int_handler)  # stops like Ctrl-C
    try:
        with Answer() as answer:
            chat.read(text, images, answer.on_prefill)
        with terminal.status(f"Writing {out}"):
            nbytes = chat.save(out, small)
    except KeyboardInterrupt:
        _keep(chat, unfinished)
        raise
    unfinished.unlink(missing_ok=True)
    _report(chat, out, nbytes)


def _read_text(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as failure:
        raise InputError(f"cannot read {path}: {failure.strerror or failure}") from None
    from mlx_llama4.cli.ask_input import PICTURE_BEGINNINGS

    if data.startswith(PICTURE_BEGINNINGS):
        advice = "pipe it to --image -" if str(path) == "-" else f"give it as --image {path}"
        raise PromptError(f"{path} is a picture, not a text; {advice}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        raise PromptError(
            f"{path} is not UTF-8 (byte {failure.start:,}); convert it first, e.g. with iconv"
        ) from None


def _check(
    folder: "ModelFolder",
    text: str,
    images: list["PromptImage"],
    chat_options: "ChatOptions",
    out: Path,
    small: bool,
) -> "Task":
    """Estimate the task. Refuses a prompt that the model cannot take, and an output file that
    cannot be written.
    """
    import mlx.core as mx

    from mlx_llama4.cache.prompt_file import check_prompt_place
    from mlx_llama4.chat.conversation import opening_messages
    from mlx_llama4.memory import prompt_file_bytes
    from mlx_llama4.planning.admission import Task
    from mlx_llama4.prompt.messages import document_parts
    from mlx_llama4.prompt.prompt import check_length

    config, processor = folder.config, folder.processor
    message = {"role": "user", "content": document_parts(text, images)}  # as `Chat.read` has it
    prompt = processor.encode_open([*opening_messages(chat_options.system), message])
    check_length(prompt, config)
    dtype_bytes = 4 if mx.default_device() == mx.cpu else 2
    kv, tokens = chat_options.kv_quantization, len(prompt.ids)
    tiles = tuple(image.num_tiles for image in images)
    slots = 0 if small else int((prompt.ids == config.image_token_id).sum())
    nbytes = prompt_file_bytes(
        config.text, tokens, dtype_bytes, kv, small=small, feature_tokens=slots
    )
    check_prompt_place(out, nbytes)
    return Task(tokens, tokens, tiles, kv, chat_options.prefill_step)


def _resume(chat: "Chat", unfinished: Path) -> None:
    """Continue from what an interrupted run of the same command left; ignore anything else."""
    from mlx_llama4.cache.prompt_file import PromptFile

    system, kv = chat.options.system, chat.options.kv_quantization
    with contextlib.suppress(CheckpointError):  # damaged, or another model's
        file = PromptFile(unfinished)
        # It might be packed differently, or have tokens that attended to unpacked ones.
        if (file.quantization is not None) == (kv is not None and file.held > kv.after):
            chat.load(unfinished)
    chat.options.system = system
    chat.reset()


def _keep(chat: "Chat", unfinished: Path) -> None:
    """Save what was read before the interruption."""
    if not len(chat.cache.ids):
        return
    try:
        chat.save(unfinished)
    except Llama4Error as error:
        terminal.note(f"error: {error}")
        return
    terminal.note(
        f"{len(chat.cache.ids):,} tokens are kept in {unfinished}; the same command continues from "
        "there"
    )


def _report(chat: "Chat", out: Path, nbytes: int) -> None:
    from mlx_llama4.units import human_bytes

    terminal.line(f"{out}: {len(chat.cache.ids):,} tokens, {human_bytes(nbytes)}")
