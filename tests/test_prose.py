"""Phrases that made our English read as translated stay out of what people read: pages, messages,
help, docstrings and comments.

Each is paired with what to write instead. A list cannot make prose good; it keeps the worst from
coming back.
"""

import re
from pathlib import Path

import pytest

from tests.program_text import texts

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
    ]
)
FOLDERS = ("mlx_llama4", "convert", "benchmarks", "examples", "docs")

INSTEAD = {
    r"be it that": "even if",
    r"of which\b(?! (experts|documents)\b)": "a sentence of its own",
    r"what of (that|it|this) fits": "how much of it fits",
    r"(to be )?gone on with": "continued",
    r"goes? on all the same": "continues anyway",
    r"(?<!there )is no (safetensors|model|picture|terminal|MLX|folder)\b": "is not a …",
    r"no safetensors file": "not a safetensors file",
    r"nothing is to be done": "you don't have to do anything",
    r"who lives or has": "if you live, or your company is based, in …",
    r"somebody may have done": "ready-made … exist",
    r"with iconv say": "for example with iconv",
    r"(reads?|needs?|takes?) but (the|a|\d)": "only",
    r"has not the": "does not have the",
    r"in a memory of your choice": "with as much memory as you allow",
    r"what is no\b": "what is not a …",
    r"is of no weight": "hardly matters",
    r"(?<!there )are no (numbers|files|tools|models|pictures)\b": "are not …",
    r"(?<!there )is no (function|tokenizer|repository|call) of\b": "is not a …",
    r"of no use any more": "can no longer be used",
    r"anew so\b": "again",
    r"which see\b": "see …",
    r"for want of\b": "because there is no …",
    r"whatever it be": "whatever it is",
}
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)


def offences(text: str) -> list[str]:
    """The phrases of the list that the text has, wherever its lines break."""
    joined = re.sub(r"\s+", " ", text)
    found = []
    for pattern, better in INSTEAD.items():
        for match in re.finditer(rf"\b{pattern}", joined, re.IGNORECASE):
            found.append(f"{joined[match.start() : match.end() + 30]!r}: write {better!r}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_read_as_english(page: Path) -> None:
    # Without code, which quotes messages as they are printed.
    assert offences(CODE.sub("", page.read_text("utf-8"))) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_programs_read_as_english(folder: str) -> None:
    found = {}
    for file in sorted((ROOT / folder).rglob("*.py")):
        if here := [line for text in texts(file.read_text("utf-8")) for line in offences(text)]:
            found[str(file.relative_to(ROOT))] = here
    assert found == {}


def test_a_phrase_planted_in_a_program_is_found() -> None:
    source = '''
def read(file):  # of which there
    # is one
    """Reads but the header."""
    raise Error(f"{file}: no safetensors file" " to be gone on with")
'''
    assert sum(len(offences(text)) for text in texts(source)) == 4


@pytest.mark.parametrize(
    "planted",
    [
        "It is answered, be it that\nthe answer was cut short.",
        "Experts, of which a token takes one, stay on the disk.",
        "The file is truncated or no safetensors file.",
        "No chat template, only the text, to be gone on with.",
        "What a model takes, and what of that fits this Mac.",
        "Nothing is to be done: it is streamed by itself.",
        "Who lives or has a seat in the European Union",
    ],
)
def test_a_planted_phrase_is_found(planted: str) -> None:
    assert offences(planted)


def test_plain_english_passes() -> None:
    assert (
        offences("The prompt is read once. If an answer crossed a border, it is read again.") == []
    )
