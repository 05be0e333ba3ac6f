"""Holds a conversation of equal turns, and prints what each took.

sys.argv[2:]: model folder, turns, tokens of an answer, tokens of a step of the prompt, ids of plain
text. Prints, for each turn: [seconds from the text to the first token, tokens that the cache held,
tokens up to the end of the prompt].
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

Sampler = Callable[[mx.array], mx.array]
Turn = Callable[[str], list[float]]


def ours(folder: str, answer_tokens: int, step: int, sampler: Sampler) -> Turn:
    from pathlib import Path

    from mlx_llama4.chat.chat import Chat, ChatOptions
    from mlx_llama4.generation.settings import GenerationSettings

    settings = GenerationSettings(max_tokens=answer_tokens, sampler=sampler)
    chat = Chat.open(Path(folder), ChatOptions(settings, prefill_step=step))

    def turn(text: str) -> list[float]:
        for _ in chat.send(text):
            pass
        found = chat.statistics
        assert found.time_to_first_token is not None
        return [found.time_to_first_token, found.cached_tokens, found.prompt_tokens]

    return turn


def mlx_lm(folder: str, answer_tokens: int, step: int, sampler: Sampler) -> Turn:
    from mlx_lm.generate import stream_generate
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load

    model, tokenizer = load(folder)[:2]
    cache = make_prompt_cache(model)
    options: dict[str, Any] = {
        "max_tokens": answer_tokens,
        "sampler": sampler,
        "prefill_step_size": step,
    }

    def turn(text: str) -> list[float]:
        start, seconds, held = time.perf_counter(), 0.0, cache[0].offset
        messages = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        for _ in stream_generate(model, tokenizer, prompt, prompt_cache=cache, **options):
            seconds = seconds or time.perf_counter() - start
        return [seconds, held, held + len(prompt)]

    return turn


def main(engine: str, folder: str, *numbers: str) -> None:
    turns, answer_tokens, step, num_ids = map(int, numbers)

    def sampler(logits: mx.array) -> mx.array:
        """Plain text alone: no answer ends before it is as long as the others."""
        return mx.argmax(logits[..., :num_ids], axis=-1)

    turn = {"ours": ours, "mlx-lm": mlx_lm}[engine](folder, answer_tokens, step, sampler)
    text = "The river was calm in the morning. The old house looked empty after the rain. "
    print(json.dumps([turn(f"Question {number:04d}. {text}") for number in range(turns)]))


main(*sys.argv[1:])
