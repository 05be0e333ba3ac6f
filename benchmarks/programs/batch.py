"""Answers the same prompts one by one and together, and prints what both took.

sys.argv[2:]: model folder, 1 to begin with "together" or 0, and as JSON [rows of text, rows with
pictures]. A row: (ids, or a picture's name; tokens to generate). Prints, for "text" and, if there
are any, "pictures": {"alone": figures, "together": figures or {"failure": why}, "rows_right": how
many rows had the tokens of their own run}.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

Row = tuple[Any, int]  # a prompt as the engine takes it, tokens to generate
Tokens = Iterator[tuple[int, int]]  # number of a row, its next token
Way = Callable[[Sequence[Row]], Tokens]


@dataclass(frozen=True)
class Ways:
    """An engine's own ways from prompts to tokens, greedily, no answer ending early."""

    prompt_of: Callable[[Any], Any]  # of ids, or of a picture's name
    alone: Callable[[Any, int], Iterator[int]]
    together: Way
    joining: Way  # half of the rows at once, then one after each step

    def one_by_one(self, rows: Sequence[Row]) -> Tokens:
        for number, row in enumerate(rows):
            for token in self.alone(*row):
                yield number, token


def ours(folder: Path) -> Ways:
    from mlx_llama4.demo.questions import PICTURES
    from mlx_llama4.generation.batch import Request, generate_batch
    from mlx_llama4.generation.generate import stream_generate
    from mlx_llama4.generation.settings import GenerationSettings
    from mlx_llama4.opening import load
    from mlx_llama4.prompt.messages import user_message
    from mlx_llama4.prompt.prompt import Prompt

    model, processor = load(folder)
    processor.end_tokens = frozenset()

    def prompt_of(given: Any) -> Prompt:
        if isinstance(given, str):
            picture = processor.tile(PICTURES / given)
            return processor.encode([user_message("Describe the image.", [picture])])
        return Prompt(np.array(given, np.int32))

    def alone(prompt: Prompt, count: int) -> Iterator[int]:
        settings = GenerationSettings(max_tokens=count, temperature=0.0)
        return (step.token for step in stream_generate(model, processor, prompt, settings))

    def request(prompt: Prompt, count: int) -> Request:
        return Request(prompt, GenerationSettings(max_tokens=count, temperature=0.0))

    def batch(requests: Iterator[Request | None]) -> Tokens:
        for number, step in generate_batch(model, processor, requests):
            if isinstance(step, Exception):
                raise step
            yield number, step.token

    def joining(rows: Sequence[Row]) -> Iterator[Request | None]:
        for number, row in enumerate(rows):
            if number >= len(rows) // 2:
                yield None
            yield request(*row)

    return Ways(
        prompt_of,
        alone,
        together=lambda rows: batch(request(*row) for row in rows),
        joining=lambda rows: batch(joining(rows)),
    )


def mlx_lm(folder: Path) -> Ways:
    from mlx_lm.generate import BatchGenerator, generate_step
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)

    def alone(prompt: list[int], count: int) -> Iterator[int]:
        steps = generate_step(mx.array(prompt), model, max_tokens=count)
        return (int(token) for token, _ in steps)

    def together(rows: Sequence[Row]) -> Tokens:
        batch = BatchGenerator(model)
        prompts, counts = zip(*rows, strict=True)
        numbers = batch.insert(list(prompts), max_tokens=list(counts))
        while True:
            for response in batch.next()[1]:
                yield numbers.index(response.uid), response.token

    return Ways(list, alone, together, joining=together)


def mlx_vlm(folder: Path) -> Ways:
    from types import SimpleNamespace

    from mlx_vlm.generate import BatchGenerator, generate_step
    from mlx_vlm.utils import load_model

    model = load_model(folder)

    class Endless:
        """Takes the place of its stopping criteria: no answer ends early."""

        def add_eos_token_ids(self, ids: Any) -> None:
            pass

        def __call__(self, token: int) -> bool:
            return False

    processor = SimpleNamespace(tokenizer=SimpleNamespace(stopping_criteria=Endless()))

    def alone(prompt: list[int], count: int) -> Iterator[int]:
        ids = mx.array(prompt)[None]
        steps = generate_step(ids, model, None, None, max_tokens=count, temperature=0)
        return (int(token) for token, _ in steps)

    def together(rows: Sequence[Row]) -> Tokens:
        """As its batch_generate does, where all pictures are of one size."""
        size = {"prefill_batch_size": len(rows), "completion_batch_size": len(rows)}
        batch = BatchGenerator(model.language_model, processor, compute_logprobs=False, **size)
        prompts, counts = zip(*rows, strict=True)
        embedded = [
            {"inputs_embeds": model.get_input_embeddings(mx.array(ids)[None], None).inputs_embeds}
            for ids in prompts
        ]
        numbers = batch.insert(list(prompts), list(counts), prompt_kwargs=embedded)
        while True:
            for response in batch.next()[1]:
                yield numbers.index(response.uid), int(response.token)

    return Ways(list, alone, together, joining=together)


def clocks() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def answers_of(way: Way, rows: Sequence[Row]) -> tuple[list[list[int]], np.ndarray]:
    """Each row's tokens, and how long the tokens took that are no row's first.

    What comes before a row's first token reads its prompt.
    """
    answers: list[list[int]] = [[] for _ in rows]
    left, decoding = sum(count for _, count in rows), np.zeros(2)
    before = clocks()
    for number, token in way(rows):
        now = clocks()
        if answers[number]:
            decoding += now - before
        before = now
        answers[number].append(token)
        left -= 1
        if not left:
            break
    return answers, decoding


def measured(way: Way, rows: Sequence[Row]) -> tuple[list[list[int]], dict[str, float]]:
    answers_of(way, [(prompt, 2) for prompt, _ in rows[:2]])  # first steps take longer
    mx.clear_cache()
    weights = mx.get_active_memory()
    mx.reset_peak_memory()
    start = clocks()
    answers, decoding = answers_of(way, rows)
    (seconds, cpu_seconds), (decode_seconds, decode_cpu_seconds) = clocks() - start, decoding
    return answers, {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "decode_seconds": decode_seconds,
        "decode_cpu_seconds": decode_cpu_seconds,
        "peak_bytes": mx.get_peak_memory() - weights,
    }


def compared(
    ways: Ways, together: Way, given: Sequence[tuple[Any, int]], together_first: bool
) -> dict[str, Any]:
    rows = [(ways.prompt_of(what), count) for what, count in given]
    answers: dict[str, list[list[int]]] = {"together": [[] for _ in rows]}
    figures: dict[str, Any] = {}
    for name in ("together", "alone") if together_first else ("alone", "together"):
        way = together if name == "together" else ways.one_by_one
        try:
            answers[name], figures[name] = measured(way, rows)
        except Exception as failure:  # a peer may not be able to answer together
            if name == "alone":
                raise
            figures[name] = {"failure": f"{type(failure).__name__}: {failure}"}
    right = sum(a == b for a, b in zip(answers["together"], answers["alone"], strict=True))
    return figures | {"rows_right": right}


def main(engine: str, folder: str, first: str, given: str) -> None:
    ways = {"ours": ours, "mlx-lm": mlx_lm, "mlx-vlm": mlx_vlm}[engine](Path(folder))
    texts, pictures = json.loads(given)
    found = {"text": compared(ways, ways.together, texts, first == "1")}
    if pictures:
        found["pictures"] = compared(ways, ways.joining, texts + pictures, first == "1")
    print(json.dumps(found))


main(*sys.argv[1:])
