"""Answer a file of questions, one line of JSON each. Answers are written as they are done.

python examples/batch_questions.py                               examples/questions.jsonl, the demo
python examples/batch_questions.py questions.jsonl --output answers.jsonl --model scout-4bit

A line of the input is an object with "question" and perhaps "images": URLs, or paths relative to
the input's folder. Everything else in it, such as an "id", is passed on, and "answer" or "error"
is added. If it is stopped, the same command continues: lines that were answered are skipped,
wherever they stand.
"""

import json
import sys
from collections.abc import Sequence
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
from mlx_llama4.errors import ImageError, OutputError, PromptError
from mlx_llama4.generation.settings import GenerationSettings

ADDED = ("answer", "finish_reason", "error")


@reports_errors
def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "questions", nargs="?", type=Path, default=Path(__file__).parent / "questions.jsonl"
    )
    parser.add_argument("--output", type=Path, default=Path("answers.jsonl"))
    parser.add_argument("--max-tokens", type=int, default=1000)
    arguments = parser.parse_args(argv)
    asked = read_questions(arguments.questions)
    if arguments.output.exists() and arguments.output.samefile(arguments.questions):
        raise OutputError(f"{arguments.output} holds the questions; name another file")
    done = read_done(arguments.output)
    waiting = [record for record in asked if as_key(record) not in done]
    say_what_is_left(arguments.output, "questions", len(asked), len(waiting))
    if not waiting:
        return

    settings = GenerationSettings(max_tokens=arguments.max_tokens, temperature=0.0)
    chat = open_chat(arguments.model, ChatOptions(settings))
    with open_to_append(arguments.output) as output:
        for record in waiting:
            answered = {"question": record["question"]} | record
            answered |= answer(chat, record, arguments.questions.parent)
            output.write(json.dumps(answered, ensure_ascii=False) + "\n")
            print(f"{record['question']}  {answered.get('answer', answered.get('error'))}")


def answer(chat: Chat, record: dict[str, Any], folder: Path) -> dict[str, Any]:
    chat.reset()
    try:
        named = record.get("images", [])
        images = [chat.open_image(one if is_url(one) else folder / one) for one in named]
        said = "".join(chat.send(record["question"], images))
    except (ImageError, PromptError) as error:
        return {"error": str(error)}
    return {"answer": said, "finish_reason": chat.statistics.finish_reason}


def is_url(name: str) -> bool:
    return name.startswith(("https://", "http://", "data:", "file://"))


def read_questions(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            texts = [record["question"], *record.get("images", [])]
        except (ValueError, KeyError, TypeError, AttributeError):
            texts = [None]
        if not all(isinstance(text, str) for text in texts):
            raise PromptError(f'{path}, line {number}: not {{"question": …, "images": […]}}')
        records.append(record)
    return records


def read_done(output: Path) -> set[str]:
    try:
        records = [json.loads(line) for line in finished_lines(output, begins='{"question": ')]
        if not all("answer" in record or "error" in record for record in records):
            raise ValueError
        return {as_key(record) for record in records}
    except (ValueError, AttributeError, TypeError):
        raise OutputError(f"{output} was not written by this script; name another file") from None


def as_key(record: dict[str, Any]) -> str:
    asked = {key: value for key, value in record.items() if key not in ADDED}
    return json.dumps(asked, sort_keys=True)


if __name__ == "__main__":
    sys.exit(main())
