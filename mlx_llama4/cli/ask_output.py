"""Print one or several answers, as text or as JSON."""

import json
import secrets
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import typer

from mlx_llama4.cli.console import terminal
from mlx_llama4.cli.markdown.answer import Answer

if TYPE_CHECKING:
    from mlx_llama4.chat import Chat
    from mlx_llama4.generation.generate import Statistics
    from mlx_llama4.prompt.image import PromptImage
    from mlx_llama4.prompt.tokenizer import Tokenizer

SEEDS = 2**64


@dataclass(frozen=True)
class Form:
    """How many answers to give, and in what form."""

    count: int = 1
    as_json: bool = False
    whole: bool = False  # an answer that is cut short is a failure


def answer_all(
    chat: "Chat",
    text: str,
    images: list["PromptImage"],
    form: Form,
) -> None:
    """Print the answers. Each has its own seed, one higher than the one before.

    The prompt is read only once. Raises typer.Exit if the exit code is not 0.
    """
    settings = chat.settings
    seed = secrets.randbits(32) if settings.seed is None else settings.seed
    is_cut = False
    for number in range(form.count):
        chat.set_settings(replace(settings, seed=(seed + number) % SEEDS))
        if form.as_json:
            _print_json(chat, chat.retry() if number else chat.send(text, images))
        else:
            if number:
                terminal.line(f"--- {number + 1} of {form.count} ---")
            _print_text(chat, text, images, number, form.whole)
        is_cut = is_cut or chat.statistics.finish_reason == "length"
    if is_cut and form.whole:
        raise typer.Exit(1)


def _print_text(
    chat: "Chat", text: str, images: list["PromptImage"], number: int, whole: bool
) -> None:
    with Answer() as answer:
        if number:
            answer.show(chat.retry(None, answer.on_prefill, answer.on_picture))
        else:
            answer.show(chat.send(text, images, answer.on_prefill, answer.on_picture))
    if chat.statistics.finish_reason == "length":
        cut = "; the JSON is cut short" if whole else ""
        terminal.note(f"(stopped after {chat.statistics.generated_tokens} tokens{cut})")


def _print_json(chat: "Chat", pieces: Iterator[str]) -> None:
    said: list[str] = []
    interrupted = False
    try:
        said.extend(pieces)
    except KeyboardInterrupt:
        interrupted = True
    result = {"text": "".join(said), **_statistics(chat.statistics)}
    settings = chat.options.settings
    result["seed"] = settings.seed if settings.is_random else None
    if interrupted:
        result["finish_reason"] = "interrupted"
    if settings.logprobs is not None:
        result["logprobs"] = _logprobs(chat.statistics, chat.processor.tokenizer)
    is_unicode = sys.stdout.encoding.lower().startswith("utf")
    terminal.line(json.dumps(result, ensure_ascii=not is_unicode))
    if interrupted:
        raise typer.Exit(terminal.INTERRUPTED)


def _statistics(statistics: "Statistics") -> dict[str, Any]:
    result = asdict(replace(statistics, steps=[]))
    del result["steps"]
    for experts in (result["prefill_experts"], result["decode_experts"]):
        if experts is not None:
            needed = experts["hits"] + experts["misses"]
            experts["hit_rate"] = experts["hits"] / needed if needed else None
    return result


def _logprobs(statistics: "Statistics", tokenizer: "Tokenizer") -> list[dict[str, Any]]:
    names = {id_: name for name, id_ in tokenizer.special_ids.items()}

    def told(token: int, logprob: float) -> dict[str, Any]:
        bytes_ = tokenizer.token_bytes(token)
        try:
            text = names.get(token) or bytes_.decode("utf-8")
            return {"token": token, "text": text, "logprob": logprob}
        except UnicodeDecodeError:  # a part of a character
            return {"token": token, "bytes": list(bytes_), "logprob": logprob}

    return [
        told(step.token, step.logprob) | {"top": [told(*pair) for pair in step.likeliest]}
        for step in statistics.steps
    ]
