"""Documents of neutral sentences with facts at known depths, drawn from a seed.

They are worded like the demo model's training data, so that it can be asked as well as any other.
"""

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.harness.demo_tasks import KEYS as TASK_KEYS
from mlx_llama4.errors import InputError

INTRODUCTION = "Remember these notes.\n"
SUBJECTS = (
    "The river", "The old house", "The garden", "A small boat", "The train", "The market",
    "My neighbor", "The teacher", "A quiet street", "The kitchen", "The mountain", "A letter",
    "The bakery", "The library", "A bird", "The weather",
)  # fmt: skip
STATES = (
    "was calm", "looked empty", "moved slowly", "seemed bright", "stayed cold", "felt warm",
    "was painted again", "became busy", "was closed", "smelled of bread",
)  # fmt: skip
TIMES = (
    "in the morning", "after the rain", "last summer", "during the night", "before lunch",
    "for a long time", "near the bridge", "again today", "as usual", "at noon",
)  # fmt: skip
KEYS = (
    *TASK_KEYS, "badger", "bamboo", "basil", "beacon", "birch", "bison", "canyon", "clover",
    "comet", "copper", "coral", "cricket", "delta", "dragon", "eagle", "ember", "garnet", "ginger",
    "hazel", "jasper", "lotus", "marble", "nectar", "orchid",
)  # fmt: skip


@dataclass(frozen=True)
class Needle:
    """A fact."""

    key: str
    code: str
    depth: float  # 0: the document's first sentence, 1: its last
    position: int  # tokens before it

    @property
    def question(self) -> str:
        return f"What is the code of {self.key}?"

    @property
    def sentence(self) -> str:
        """The fact, which is also the answer."""
        return f"The code of {self.key} is {self.code}."


@dataclass(frozen=True)
class Haystack:
    """A document."""

    text: str
    tokens: int  # as many as asked for, or up to a sentence more
    needles: tuple[Needle, ...]


def spread(count: int) -> tuple[float, ...]:
    """`count` depths from 0 to 1 at equal distances; at least two."""
    return tuple(index / (count - 1) for index in range(count))


def draw_haystack(
    length: int, depths: Sequence[float], seed: int, count_tokens: Callable[[str], int]
) -> Haystack:
    """A document of `length` tokens with a fact at each depth, in ascending order.

    No two facts have the same key or code. Raises InputError if the facts alone are longer.
    """
    source = random.Random(f"{seed} {length}")
    keys = source.sample(KEYS, len(depths))
    codes = map(str, source.sample(range(100, 1000), len(depths)))
    count = functools.cache(count_tokens)
    # Tokenizers of the family split before spaces: sentences can be counted one by one.
    facts = [
        (depth, key, code, count(f" The code of {key} is {code}."))
        for depth, key, code in zip(depths, keys, codes, strict=True)
    ]
    tokens = count(INTRODUCTION)
    room = length - tokens - sum(fact[-1] for fact in facts)
    if room < 0:
        raise InputError(
            f"{length} tokens cannot hold {len(depths)} facts; ask for longer documents or fewer "
            "depths"
        )
    sentences: list[str] = []
    needles = []
    neutral = 0  # tokens of neutral sentences
    for depth, key, code, fact_tokens in facts:
        while neutral < depth * room:
            sentence = _sentence(source)
            sentences.append(sentence)
            neutral += count(f" {sentence}")
        needle = Needle(key, code, depth, tokens + neutral)
        sentences.append(needle.sentence)
        needles.append(needle)
        tokens += fact_tokens
    text = f"{INTRODUCTION}{' '.join(sentences)}\n"
    return Haystack(text, tokens + neutral, tuple(needles))


def _sentence(source: random.Random) -> str:
    return f"{source.choice(SUBJECTS)} {source.choice(STATES)} {source.choice(TIMES)}."
