"""`python -m benchmarks needle`: recall of facts by depth and length of a document."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.harness import options
from benchmarks.harness.files import temporary_folder
from benchmarks.harness.machine import this_machine
from benchmarks.harness.outputs import Outputs
from benchmarks.needle.haystack import KEYS, Haystack, Needle, draw_haystack, spread
from benchmarks.needle.heat_map import write_heat_map
from benchmarks.needle.recall import Asked, Reading, Recall, as_json, heat_map, print_recall
from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.markdown.answer import Answer
from mlx_llama4.cli.options import Caching, KVBits, KVGroupSize, load_chat, place_model
from mlx_llama4.errors import InputError
from mlx_llama4.memory import PREFILL_SPAN
from mlx_llama4.planning.planner import parse_tokens
from mlx_llama4.quantization import KVQuantization

if TYPE_CHECKING:
    from mlx_llama4.chat import Chat
    from mlx_llama4.model.llama4 import Llama4

DEMO = "the demo model in 8 bits"
DEMO_LENGTHS = "768,3K,12K"  # 1, 4 and 16 times the longest notes in its training
LENGTHS = "8K,32K,128K"
ANSWER_TOKENS = 64
ROOM_TOKENS = 256  # for the chat format, the question and the answer


@terminal.reports_errors
def needle(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="A converted model, by folder or name. Default: the demo.",
            show_default=False,
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help=f"Tokens of documents; K is 1,024. Default: {LENGTHS}; demo: {DEMO_LENGTHS}.",
            show_default=False,
        ),
    ] = None,
    depths: Annotated[
        int, typer.Option(metavar="N", min=2, max=len(KEYS), help="Facts in each document.")
    ] = 9,
    seeds: Annotated[
        str, typer.Option(metavar="LIST", help="Documents of each length; one number or a list.")
    ] = "2",
    kv_bits: KVBits = None,
    kv_group_size: KVGroupSize = None,
    json: options.Json = None,
    png: options.Png = None,
) -> None:
    """Ask for facts from long documents: right answers by depth and length.

    \b
    Example:
      python -m benchmarks needle --model scout-4bit --lengths 8K,128K --png recall.png
    """
    outputs = Outputs(json, png)
    sizes = parse_lengths(lengths or (LENGTHS if model else DEMO_LENGTHS))
    documents = list(zip(sizes, parse_seeds(seeds, len(sizes)), strict=True))
    packing = Caching(PREFILL_SPAN, kv_bits, kv_group_size, None).quantization()
    terminal.import_mlx()
    with _folder(model) as folder:
        recall = _measure(folder, model, documents, spread(depths), packing)
    print_recall(recall)
    outputs.write_json(as_json(recall))
    if outputs.png is not None:
        write_heat_map(heat_map(recall), outputs.png)


def parse_lengths(text: str) -> list[int]:
    """ "768,3K,1M" → tokens, in ascending order. Raises InputError."""
    return sorted({parse_tokens(part, "--lengths") for part in text.split(",")})


def parse_seeds(text: str, lengths: int) -> list[int]:
    """ "4" or "8,8,2" → documents of each of `lengths` lengths. Raises InputError."""
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[1-9]\d*\s*", part) for part in parts):
        raise InputError(f"--seeds {text}: write a number, or one for each length like 8,8,2")
    if len(parts) not in (1, lengths):
        raise InputError(
            f"--seeds {text}: there are {lengths} lengths; give one number or {lengths}"
        )
    return [int(part) for part in parts] * (lengths if len(parts) == 1 else 1)


@contextlib.contextmanager
def _folder(model: str | None) -> Iterator[Path]:
    """The folder of the model, or of the demo packed as `mlx-llama4 demo` packs it."""
    from mlx_llama4.convert.recipes import Recipe
    from mlx_llama4.convert.run import convert
    from mlx_llama4.demo.questions import CHECKPOINT
    from mlx_llama4.hub.repository import find_folder
    from mlx_llama4.quantization import Quantization

    if model is not None:
        yield find_folder(model)
        return
    with temporary_folder() as temporary:
        folder = temporary / "demo-8bit"
        convert(CHECKPOINT, folder, Recipe("bfloat16", Quantization(group_size=64, bits=8)))
        yield folder


def _measure(
    folder: Path,
    model: str | None,
    documents: Sequence[tuple[int, int]],
    depths: Sequence[float],
    packing: KVQuantization | None,
) -> Recall:
    """documents: pairs of a length and how many documents have it."""
    from mlx_llama4.chat import ChatOptions
    from mlx_llama4.generation.settings import GenerationSettings
    from mlx_llama4.opening import open_folder
    from mlx_llama4.planning.admission import Task

    opened = open_folder(folder)
    config, tokenizer = opened.config, opened.processor.tokenizer
    if packing is not None:
        packing.check(config.text.head_dim)
    drawn = [
        (
            length,
            seed,
            draw_haystack(length, depths, seed, lambda text: len(tokenizer.encode(text))),
        )
        for length, count in documents
        for seed in range(1, count + 1)
    ]
    longest = max(haystack.tokens for _, _, haystack in drawn) + ROOM_TOKENS
    placement = place_model(opened, Task(longest, longest, kv=packing))
    settings = GenerationSettings(max_tokens=ANSWER_TOKENS, temperature=0.0)
    options = ChatOptions(settings, kv_quantization=packing)
    chat = load_chat(opened, options, placement)
    limit = _lift_limit(chat.model, longest)
    # The demo words every answer alike; other models may word it as they like.
    readings = [
        _read(chat, length, seed, haystack, exact=model is None) for length, seed, haystack in drawn
    ]
    scoring = "the whole answer" if model is None else "the code is in the answer"
    name = model or DEMO
    if packing is not None:
        name = f"{name}, keys and values in {packing.bits} bits"
    return Recall(name, scoring, depths, limit, readings, this_machine())


def _lift_limit(model: "Llama4", tokens: int) -> int | None:
    """Let the model take prompts of `tokens` tokens. Returns its own limit if that was lower."""
    text = model.config.text
    if tokens <= text.max_position_embeddings:
        return None
    # Only the check of prompts uses it: no position is absolute but the temperature's.
    lifted = replace(text, max_position_embeddings=tokens)
    model.config = replace(model.config, text=lifted)
    return text.max_position_embeddings


def _read(chat: "Chat", length: int, seed: int, haystack: Haystack, exact: bool) -> Reading:
    """Ask one question at a time; the cache keeps the document from one to the next."""
    asked: list[Asked] = []
    seconds = 0.0
    chat.reset()
    for one in haystack.needles:
        chat.messages.clear()
        with Answer() as progress:
            pieces = chat.send(haystack.text + one.question, on_prefill=progress.on_prefill)
            answer = "".join(pieces).strip()
        took = chat.statistics
        seconds = seconds or took.time_to_first_token or 0.0
        right = is_right(one, answer, exact)
        asked.append(Asked(one, answer, right, took.prompt_tokens, took.cached_tokens))
    hits = sum(one.right for one in asked)
    terminal.note(
        f"{length:,} tokens, seed {seed}: {hits} of {len(asked)} right, read in {seconds:.1f} s"
    )
    return Reading(length, haystack.tokens, seed, seconds, tuple(asked))


def is_right(needle: Needle, answer: str, exact: bool) -> bool:
    """exact: the answer must be the document's sentence; else it must hold the code as a number."""
    if exact:
        return answer == needle.sentence
    return re.search(rf"(?<!\d){needle.code}(?!\d)", answer) is not None
