"""Questions that the demo model was trained to answer, drawn anew from a seed.

The questions of `mlx-llama4 demo` are ones it answers right; these are not chosen, so the share of
right answers tells how good a copy of the model is.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from mlx_llama4.demo.render import COLOURS, CREAM, WHITE, Picture, Shape, render

KINDS = ("circle", "square", "triangle", "star", "cross")
ORDINALS = ("first", "second")
KEYS = ("walnut", "amber", "cedar", "falcon", "harbor", "indigo", "otter", "pepper", "tulip")
SENTENCES = (
    "The river was calm in the morning.", "A small boat moved slowly near the bridge.",
    "The garden seemed bright last summer.", "The train stayed cold during the night.",
    "The market became busy before lunch.", "The teacher felt warm again today.",
    "The old house looked empty after the rain.", "A quiet street was painted again as usual.",
)  # fmt: skip
NOTE_SENTENCES = 16  # about 200 tokens, more than one attention chunk of 128
FACTS = 3


@dataclass(frozen=True)
class Task:
    """A question, its only right answer, and the pictures it is about."""

    kind: str
    text: str
    expected: str
    pictures: tuple[Image.Image, ...] = ()


def draw_tasks(each: int, seed: int) -> list[Task]:
    """Draw `each` tasks of every kind."""
    makers: tuple[Callable[[random.Random], Task], ...] = (
        _colour, _shape, _describe, _which, _recall, _sum,
    )  # fmt: skip
    return [
        maker(random.Random(f"{seed} {maker.__name__} {index}"))
        for maker in makers
        for index in range(each)
    ]


def _picture(source: random.Random, count: int | None = None) -> Picture:
    """Draw shapes of different kinds and colours, side by side with room between them."""
    count = count or source.randint(1, 3)
    kinds, colours = source.sample(KINDS, count), source.sample(sorted(COLOURS), count)
    side = source.choice((112, 112, 112, 160, 200))
    width = 1 / count
    shapes = tuple(
        Shape(
            colour,
            kind,
            (index + 0.5) * width + source.uniform(-0.02, 0.02),
            source.uniform(0.3, 0.7),
            source.uniform(0.13, 0.15) if count > 1 else source.uniform(0.17, 0.28),
        )
        for index, (kind, colour) in enumerate(zip(kinds, colours, strict=True))
    )
    return Picture(side, side, shapes, source.choice((WHITE, CREAM)))


def _colour(source: random.Random) -> Task:
    picture = _picture(source)
    shape = source.choice(picture.shapes)
    answer = f"The {shape.kind} is {shape.colour}."
    return Task("colour", f"What color is the {shape.kind}?", answer, (render(picture),))


def _shape(source: random.Random) -> Task:
    picture = _picture(source)
    shape = source.choice(picture.shapes)
    answer = f"The {shape.kind} is {shape.colour}."
    return Task("shape", f"What shape is {shape.colour}?", answer, (render(picture),))


def _describe(source: random.Random) -> Task:
    picture = _picture(source)
    named = [f"{_with_article(shape.colour)} {shape.kind}" for shape in picture.shapes]
    listed = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
    answer = f"From left to right: {listed}."
    return Task("describe", "Describe the image.", answer, (render(picture),))


def _which(source: random.Random) -> Task:
    pictures = [_picture(source), _picture(source)]
    sets = [{shape.kind for shape in picture.shapes} for picture in pictures]
    if sets[0] == sets[1]:
        return _which(source)
    kind = source.choice(sorted(sets[0] ^ sets[1]))
    place = ORDINALS[kind in sets[1]]
    return Task(
        "which image",
        f"Which image has {_with_article(kind)}?",
        f"The {kind} is in the {place} image.",
        tuple(map(render, pictures)),
    )


def _recall(source: random.Random) -> Task:
    codes = {key: f"{source.randint(100, 999)}" for key in source.sample(KEYS, FACTS)}
    lines = [source.choice(SENTENCES) for _ in range(NOTE_SENTENCES)]
    for key, code in codes.items():
        lines.insert(source.randrange(len(lines)), f"The code of {key} is {code}.")
    key = source.choice(sorted(codes))
    notes = "Remember these notes.\n" + " ".join(lines) + "\n"
    question = f"{notes}What is the code of {key}?"
    return Task("recall", question, f"The code of {key} is {codes[key]}.")


def _sum(source: random.Random) -> Task:
    first = source.randint(0, 20)
    second = source.randint(0, 20 - first)
    question = f"What is {first} plus {second}?"
    return Task("sum", question, f"{first} plus {second} is {first + second}.")


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
