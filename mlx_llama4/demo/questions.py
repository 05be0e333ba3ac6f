"""The demo's questions, and the answers that its tiny model is known to give.

They are questions of the kinds that the model was trained on, and which it gets right. They show
that the software works, not how good the model is.
"""

from dataclasses import dataclass
from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
PICTURES = Path(__file__).parent / "pictures"

# Longer than one attention chunk (128 tokens): the code must come through the global layers.
NOTES = (
    "Remember these notes.\n"
    "The river was calm in the morning. The old house looked empty after the rain. "
    "The code of walnut is 407. The garden seemed bright last summer. A small boat moved slowly "
    "near the bridge. The train stayed cold during the night. The market became busy before "
    "lunch. My neighbor was closed for a long time. The teacher felt warm again today. A quiet "
    "street was painted again as usual. The kitchen smelled of bread at noon. The mountain was "
    "calm after the rain. A letter looked empty in the morning. The bakery smelled of bread "
    "before lunch. The library was closed during the night. A bird moved slowly near the bridge. "
    "The weather stayed cold as usual.\n"
)


@dataclass(frozen=True)
class Question:
    text: str
    expected: str
    pictures: tuple[str, ...] = ()
    context: str = ""  # comes before the question in the prompt, too long to show


QUESTIONS = (
    Question("What is in the image?", "From left to right: a red star.", ("star.png",)),
    Question("What shape is red?", "The square is red.", ("wide.png",)),
    Question("What is on the right?", "A green star is on the right.", ("two.png",)),
    Question("How many shapes are there?", "There are three shapes.", ("three.png",)),
    Question(
        "Describe the image.",
        "From left to right: an orange square, a purple cross and a black triangle.",
        ("three.png",),
    ),
    Question(
        "Which image has a triangle?",
        "The triangle is in the second image.",
        ("first.png", "second.png"),
    ),
    Question("What is the code of walnut?", "The code of walnut is 407.", (), NOTES),
    Question("What is 7 plus 5?", "7 plus 5 is 12."),
)
