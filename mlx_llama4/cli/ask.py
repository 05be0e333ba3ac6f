"""`mlx-llama4 ask`: one question, one answer."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlx_llama4.cli import options, terminal
from mlx_llama4.cli.memory_check import Task, check_memory
from mlx_llama4.errors import PromptError

if TYPE_CHECKING:
    from mlx_llama4.chat import Chat, ChatOptions
    from mlx_llama4.prompt.image import PromptImage


@terminal.reports_errors
def ask(
    question: Annotated[
        str | None,
        typer.Argument(
            metavar="QUESTION",
            help="Without it, or if it is -, standard input is read.",
            show_default=False,
        ),
    ] = None,
    *,
    model: options.Model,
    revision: options.Revision = None,
    image: options.Images = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: the answer and statistics.")
    ] = False,
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
    """Ask one question, with any number of pictures.

    \b
    Example:
      mlx-llama4 ask "What is this?" --model scout-4bit --image photo.jpg
    """
    from mlx_llama4.hub import find_folder

    terminal.import_mlx()
    text = terminal.as_typed(_read_standard_input() if question in (None, "-") else question)
    if not text.strip() and not image:
        raise PromptError("the question is empty")
    sampling = options.Sampling(temperature, top_p, top_k, seed)
    caching = options.Caching(prefill_step, kv_bits, kv_group_size, kv_quantize_after)
    placing = options.expert_options(experts, expert_memory, page_cache)
    folder = find_folder(model, revision)
    chat_options = options.chat_options(folder, system, max_tokens, sampling, caching)
    chat_options.prefix_bytes = 0  # nothing comes after it
    held = options.open_cache(cache, folder, chat_options).tokens if cache is not None else 0
    images, task = _read(folder, text, image or [], chat_options, held)
    placement = check_memory(folder, replace(task, span=prefill_step), placing, force=force)
    with options.loaded_chat(folder, chat_options, placement, trace) as chat:
        if cache is not None:
            chat.load(cache)
        answer = _answer_json if as_json else _answer
        answer(chat, text, images)


def _read(
    folder: Path, text: str, paths: list[Path], chat_options: "ChatOptions", held: int
) -> tuple[list["PromptImage"], Task]:
    """The pictures, and what will have to be done. Refuses a prompt that the model cannot take.

    held: tokens of the prompt cache that the question goes on from.
    """
    from mlx_llama4.conversation import opening_messages
    from mlx_llama4.load import open_folder
    from mlx_llama4.prompt.messages import user_message
    from mlx_llama4.prompt.processor import check_length

    config, processor = open_folder(folder)
    images = [processor.tile(path) for path in paths]
    messages = [*opening_messages(chat_options.system), user_message(text, images)]
    prompt = processor.encode(messages)
    check_length(prompt, config)
    tiles = tuple(image.num_tiles for image in images)
    context = held + len(prompt.ids) + chat_options.max_tokens
    return images, Task(context, len(prompt.ids), tiles, chat_options.kv_quantization)


def _answer(chat: "Chat", text: str, images: list["PromptImage"]) -> None:
    with terminal.Answer() as answer:
        answer.show(chat.send(text, images, answer.on_prefill))
    if chat.statistics.finish_reason == "length":
        terminal.note(f"(stopped after {chat.statistics.generated_tokens} tokens)")


def _answer_json(chat: "Chat", text: str, images: list["PromptImage"]) -> None:
    pieces: list[str] = []
    interrupted = False
    try:
        pieces.extend(chat.send(text, images))
    except KeyboardInterrupt:
        interrupted = True
    statistics = asdict(chat.statistics)
    for experts in (statistics["prefill_experts"], statistics["decode_experts"]):
        if experts is not None:
            needed = experts["hits"] + experts["misses"]
            experts["hit_rate"] = experts["hits"] / needed if needed else None
    if interrupted:
        statistics["finish_reason"] = "interrupted"
    is_unicode = sys.stdout.encoding.lower().startswith("utf")
    result = {"text": "".join(pieces), **statistics}
    terminal.line(json.dumps(result, ensure_ascii=not is_unicode))
    if interrupted:
        raise typer.Exit(terminal.INTERRUPTED)


def _read_standard_input() -> str:
    if sys.stdin.isatty():
        raise PromptError("give a question, or pipe one in")
    return sys.stdin.read()
