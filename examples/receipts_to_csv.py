"""Pictures of receipts to the rows of a table, a question for each field.

python examples/receipts_to_csv.py                               the demo's pictures and fields
python examples/receipts_to_csv.py receipts/*.jpg --output receipts.csv --model scout-4bit
python examples/receipts_to_csv.py *.jpg --field "tax=How high is the tax?" --model scout-4bit

A picture is read once, its fields are asked one by one: what one answer says cannot push another
out of its column. The same command goes on where it was stopped. Check the sums: models misread.
"""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from common import argument_parser, finished_lines, open_chat, open_to_append, reports_errors

from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.demo.questions import PICTURES
from mlx_llama4.errors import ImageError, PromptError

FIELDS = {
    "shop": "What is the name of the shop? Answer with the name alone.",
    "date": "What is the date? Answer with YYYY-MM-DD alone, or with ? if there is none.",
    "currency": "In which currency was paid? Answer with its three letters alone.",
    "total": "What is the total? Answer with the number alone, or with ? if there is none.",
}
DEMO_PICTURES = [PICTURES / name for name in ("star.png", "two.png", "three.png")]
DEMO_FIELDS = {"count": "How many shapes are there?", "left": "What is on the left?"}


@reports_errors
def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE")
    parser.add_argument("--field", action="append", metavar="NAME=QUESTION", help="repeatable")
    parser.add_argument("--output", type=Path, default=Path("receipts.csv"))
    arguments = parser.parse_args(argv)
    pictures = arguments.pictures or DEMO_PICTURES
    fields = FIELDS if arguments.pictures else DEMO_FIELDS
    if arguments.field:
        fields = dict(split_field(given) for given in arguments.field)
    header = as_line(["picture", *fields, "error"])
    lines = finished_lines(arguments.output, begins=header)
    done = {row[0] for row in csv.reader(lines) if row}
    waiting = [path for path in pictures if as_cell(str(path)) not in done]
    print(f"{len(pictures)} pictures, {len(waiting)} of them to do", file=sys.stderr)
    if not waiting:
        return

    chat = open_chat(arguments.model, ChatOptions(max_tokens=100, prefix_bytes=0))
    with open_to_append(arguments.output) as output:
        if not lines:
            output.write(header)
        for path in waiting:
            line = as_line([str(path), *read_receipt(chat, path, list(fields.values()))])
            output.write(line)
            print(line, end="", file=sys.stderr)


def read_receipt(chat: Chat, path: Path, questions: Sequence[str]) -> list[str]:
    """An answer to each question, and what went wrong, if anything."""
    chat.reset()
    try:
        image = chat.open_image(path)
    except ImageError as error:
        return [*[""] * len(questions), str(error)]
    chat.read("", [image])
    answers = []
    for question in questions:
        chat.reset()
        answers.append("".join(chat.send(question)))
    return [*answers, ""]


def as_line(values: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(map(as_cell, values))
    return text.getvalue()


def as_cell(value: str) -> str:
    """On one line, so that a row is one; and nothing that a spreadsheet would take for a formula:
    what a stranger has printed is data.
    """
    value = " ".join(value.split())
    return f"'{value}" if value.startswith(("=", "+", "@")) else value


def split_field(given: str) -> tuple[str, str]:
    name, equals, question = given.partition("=")
    if not equals or not name.strip() or not question.strip():
        raise PromptError(f"--field {given}: write NAME=QUESTION")
    return name, question


if __name__ == "__main__":
    sys.exit(main())
