"""Turn pictures of receipts into the rows of a table, with a question for each field.

python examples/receipts_to_csv.py                               the demo's pictures and fields
python examples/receipts_to_csv.py receipts/*.jpg --output receipts.csv --model scout-4bit

A picture is read once, and its fields are asked for one by one. An answer that must be a number or
a date is held to a JSON schema. If it is stopped, the same command continues. Check sums: models
misread.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import (
    argument_parser,
    finished_lines,
    open_chat,
    open_to_append,
    reports_errors,
    say_what_is_left,
)

from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.demo.questions import PICTURES
from mlx_llama4.errors import ImageError
from mlx_llama4.generation.grammar import Grammar, GrammarTokens
from mlx_llama4.generation.settings import GenerationSettings

# Column: its question, and the schema of its answer; None takes any text.
FIELDS = {
    "shop": ("What is the name of the shop? Answer with the name alone.", None),
    "date": ("What is the date, or null?", {"type": ["string", "null"], "format": "date"}),
    "currency": ("In which currency was paid?", {"enum": ["USD", "EUR", "GBP", "JPY", "other"]}),
    "total": ("What is the total, or null?", {"type": ["number", "null"]}),
}
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
NEGATIVE = re.compile(r"-\d[\d.,]*")
COUNTS = ["There is one shape.", "There are two shapes.", "There are three shapes."]
DEMO_FIELDS = {
    "count": ("How many shapes are there?", {"enum": COUNTS}),
    "left": ("What is on the left?", None),
}
DEMO_PICTURES = [PICTURES / name for name in ("star.png", "two.png", "three.png")]


@reports_errors
def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE")
    parser.add_argument("--output", type=Path, default=Path("receipts.csv"))
    arguments = parser.parse_args(argv)
    pictures = arguments.pictures or DEMO_PICTURES
    fields = FIELDS if arguments.pictures else DEMO_FIELDS
    header = as_line(["picture", *fields, "error"])
    lines = finished_lines(arguments.output, begins=header)
    done = {row[0] for row in csv.reader(lines) if row}
    waiting = [path for path in pictures if as_cell(path) not in done]
    say_what_is_left(arguments.output, "pictures", len(pictures), len(waiting))
    if not waiting:
        return

    settings = GenerationSettings(max_tokens=100, temperature=0.0)
    chat = open_chat(arguments.model, ChatOptions(settings, prefix_bytes=0))
    vocabulary = chat.model.config.text.vocab_size
    tokens = GrammarTokens(chat.processor.tokenizer, chat.processor.end_tokens, vocabulary)
    asked = {text: schema and Grammar(schema, tokens) for text, schema in fields.values()}
    with open_to_append(arguments.output) as output:
        if not lines:
            output.write(header)
        for path in waiting:
            line = as_line([path, *read_receipt(chat, path, asked)])
            output.write(line)
            print(line, end="", file=sys.stderr)


def read_receipt(chat: Chat, path: Path, asked: Mapping[str, Grammar | None]) -> list[Any]:
    """An answer to each question, and what went wrong, if anything did."""
    chat.reset()
    try:
        chat.read("", [chat.open_image(path)])
    except ImageError as error:
        return [*[None] * len(asked), error]
    answers, error = [], None
    for question, grammar in asked.items():
        chat.reset()
        chat.options.settings = replace(chat.options.settings, grammar=grammar)
        answer = "".join(chat.send(question))
        if chat.statistics.finish_reason == "length":
            answer, error = None, f"the answer has no end: {question}"
        elif grammar is not None:
            answer = json.loads(answer, parse_float=str)  # 12.50 stays 12.50
        answers.append(answer)
    return [*answers, error]


def as_line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(map(as_cell, values))
    return text.getvalue()


def as_cell(value: Any) -> str:
    """On one line, so that a row is one line. Nothing in it is a formula to a spreadsheet: what a
    stranger has printed is data.
    """
    if isinstance(value, Path):  # two names that differ stay two
        cell = CONTROLS.sub(lambda c: c[0].encode("unicode_escape").decode(), str(value))
    else:
        cell = "" if value is None else " ".join(str(value).split())
    is_formula = cell.startswith(("=", "+", "-", "@")) and not NEGATIVE.fullmatch(cell)
    return f"'{cell}" if is_formula else cell


if __name__ == "__main__":
    sys.exit(main())
