"""Requests run together and alone, and what is the same about them."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np

from mlx_llama4.errors import Llama4Error
from mlx_llama4.generation.batch import Request, generate_batch
from mlx_llama4.generation.generate import Step, stream_generate
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.model.llama4 import Llama4
from tests.prompts import Letters, picture, words
from tests.small_model import CHUNK
from tests.tolerance import tolerance

ENDS = {5, 7}
LEAST_GAP = 1e-3  # of log-probabilities; rounding makes 1e-5
Results = dict[int, list[Step | Llama4Error]]


def at_most(tokens: int) -> GenerationSettings:
    return GenerationSettings(max_tokens=tokens)


def run_all(
    model: Llama4,
    requests: Iterable[Request | None],
    batch_size: int = 8,
    end_tokens: Collection[int] = ENDS,
    **arguments: object,
) -> Results:
    """What came of each request, by its number."""
    results: Results = {}
    letters = Letters(end_tokens)
    for number, step in generate_batch(
        model, letters, requests, batch_size=batch_size, **arguments
    ):
        results.setdefault(number, []).append(step)
    return results


def run_alone(model: Llama4, request: Request) -> list[Step]:
    """By `generate`, greedily; no token is chosen by a hair."""
    steps = list(
        stream_generate(
            model,
            Letters(ENDS),
            request.prompt,
            replace(request.settings, logprobs=2),
            cache=request.cache,
        )
    )
    gaps = [first[1] - second[1] for step in steps for first, second in [step.likeliest]]
    assert min(gaps) > LEAST_GAP
    return [replace(step, likeliest=()) for step in steps]


def assert_same(steps: Sequence[Step], expected: Sequence[Step]) -> None:
    told = [[(s.text, s.token, s.finish_reason) for s in each] for each in (steps, expected)]
    assert told[0] == told[1]
    differences = np.subtract([s.logprob for s in steps], [s.logprob for s in expected])
    assert np.abs(differences).max() < tolerance("text")


# Lengths before, at and after borders, of one chunk and of many; two with pictures.
TEXTS = (
    *(words(seed, length) for seed, length in enumerate((3, CHUNK, 20, CHUNK - 1, 40, 1))),
    picture(1) + words(9, 5),
    words(3, 4) + picture(2) + words(2, 2),
)
MOST = (20, 9, 30, 12, 25, 40, 22, 17)


def eight() -> list[Request]:
    return [Request(text.prompt, at_most(most)) for text, most in zip(TEXTS, MOST, strict=True)]
