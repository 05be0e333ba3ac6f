"""Tokens guessed ahead and verified several at once: they are the tokens without that."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache as memoized
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.stream import convert
from mlx_llama4.generation.drafting import NgramDrafter
from mlx_llama4.generation.generate import Statistics, generate
from mlx_llama4.load import load_model
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.processor import Prompt
from tests import tiny
from tests.test_cache_sequences import words
from tests.test_generation import letters

FEW = 40  # different tokens, so that runs of three come again


def repetitive(seed: int, length: int = 60) -> Prompt:
    """Passages that come again, some of them changed."""
    random = np.random.default_rng(seed)
    passage = random.integers(0, FEW, length // 4)
    ids = np.concatenate([passage, passage, random.permutation(passage), passage])
    return Prompt(ids.astype(np.int32))


@dataclass
class Fixed:
    """Drafts what it was given, whatever is said: by the number of tokens said so far."""

    drafts: Sequence[Sequence[int]]
    said: int = field(default=0)

    def take(self, token: int) -> None:
        self.said += 1

    def propose(self, most: int) -> Sequence[int]:
        return self.drafts[self.said % len(self.drafts)][:most]


@memoized
def two_layers() -> Llama4:
    """A chunked and a global one, with experts: no more than the many tokens here need."""
    overrides = {"attention_chunk_size": 16, "num_hidden_layers": 2, "no_rope_layers": [1, 0]}
    config = tiny.config("scout", **overrides)
    with tempfile.TemporaryDirectory() as folder:
        source = tiny.write_checkpoint(Path(folder) / "source", config, tiny.tensors(config))
        convert(source, Path(folder) / "mlx", Recipe("float32", None))
        return load_model(Path(folder) / "mlx", mx.float32)


def told(
    prompt: Prompt, model: Llama4 | None = None, **arguments: object
) -> tuple[list, Statistics]:
    """Of each step (token, text, why it was the last); statistics."""
    statistics = Statistics()
    arguments = {"token_bytes": letters, "end_tokens": (), "max_tokens": 60} | arguments
    steps = generate(model or two_layers(), prompt, statistics=statistics, **arguments)
    return [(step.token, step.text, step.finish_reason) for step in steps], statistics


@pytest.mark.slow
def test_500_tokens_after_20_prompts() -> None:
    """Greedy, float32, a chunk border after each 16 tokens; some drafts hold and some do not."""
    drafts = []
    for seed in range(20):
        prompt = repetitive(seed)
        plain, _ = told(prompt, max_tokens=500)
        drafted, statistics = told(prompt, max_tokens=500, draft=NgramDrafter)
        assert drafted == plain and len(plain) == 500
        drafts.append(statistics.drafts)
    assert all(one.accepted > 100 for one in drafts)
    refused = [one.drafted - one.accepted for one in drafts]
    assert sum(refused) > 100 and np.count_nonzero(refused) > 5


def test_a_draft_follows_the_longest_match() -> None:
    #              the latest of two      longer
    ids = np.array([9, 1, 2, 3, 50, 4, 1, 2, 3, 60, 5, 9, 1, 2, 3], np.int32)
    assert NgramDrafter(ids).propose(2) == [50, 4]
    assert NgramDrafter(ids[1:-4]).propose(2) == []
    shorter = NgramDrafter(ids[1:11])
    for token in (1, 2, 3):
        assert shorter.propose(3) == []
        shorter.take(token)
    assert shorter.propose(3) == [60, 5, 1]


def test_a_draft_goes_on_with_what_repeats() -> None:
    assert NgramDrafter(np.array([7, 1, 2, 1, 2, 1, 2], np.int32)).propose(5) == [1, 2, 1, 2, 1]
    assert NgramDrafter(words(1, 2).prompt.ids).propose(5) == []
    assert len(NgramDrafter(np.zeros(9, np.int32)).propose(500)) == 16


def test_tokens_told_one_by_one_are_found_as_if_they_were_the_prompt() -> None:
    ids = np.random.default_rng(0).integers(0, 4, 300).astype(np.int32)
    growing = NgramDrafter(ids[:0])
    for end, token in enumerate(ids.tolist(), start=1):
        growing.take(token)
        assert growing.propose(16) == NgramDrafter(ids[:end]).propose(16)
