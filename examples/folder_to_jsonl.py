"""Describe a folder of pictures: one line of JSON for each, as it is done.

python examples/folder_to_jsonl.py                               the demo's pictures
python examples/folder_to_jsonl.py photos --output photos.jsonl --model scout-4bit

If Ctrl-C, a kill or a full disk stops it, the same command continues: it skips pictures for which
the output already answers the same question. A file that is not a picture gets a line with "error"
and stops nothing; delete that line to try it again.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

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
from mlx_llama4.errors import ImageError, OutputError, PromptError
from mlx_llama4.generation.settings import GenerationSettings

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".heic"}


@reports_errors
def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=PICTURES, help="with the folders in it"
    )
    parser.add_argument("--question", default="Describe the image.")
    parser.add_argument("--output", type=Path, default=Path("pictures.jsonl"))
    parser.add_argument("--max-tokens", type=int, default=500)
    arguments = parser.parse_args(argv)
    folder, question = arguments.folder, arguments.question
    pictures = find_pictures(folder)
    done = read_done(arguments.output)
    waiting = [path for path in pictures if (str(path.relative_to(folder)), question) not in done]
    say_what_is_left(arguments.output, "pictures", len(pictures), len(waiting))
    if not waiting:
        return

    settings = GenerationSettings(max_tokens=arguments.max_tokens, temperature=0.0)
    chat = open_chat(arguments.model, ChatOptions(settings, prefix_bytes=0))
    with open_to_append(arguments.output) as output:
        for number, path in enumerate(waiting, 1):
            row = {"picture": str(path.relative_to(folder)), "question": question}
            row |= describe(chat, path, question)
            output.write(json.dumps(row, ensure_ascii=False) + "\n")
            said = row.get("answer", row.get("error"))
            print(f"{number} of {len(waiting)}  {row['picture']}: {said}", file=sys.stderr)


def describe(chat: Chat, path: Path, question: str) -> dict[str, str | int | None]:
    chat.reset()
    try:
        image = chat.open_image(path)
    except ImageError as error:
        return {"error": str(error)}
    answer = "".join(chat.send(question, [image]))
    return {
        "answer": answer,
        "finish_reason": chat.statistics.finish_reason,  # "length": cut at --max-tokens
        "tokens": chat.statistics.generated_tokens,
    }


def find_pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise PromptError(f"{folder} is not a folder")
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        if path.is_file() or not path.exists()  # a named pipe would be waited for
    )


def read_done(output: Path) -> set[tuple[str, str]]:
    try:
        rows = [json.loads(line) for line in finished_lines(output, begins='{"picture": ')]
        return {(row["picture"], row["question"]) for row in rows}
    except (ValueError, KeyError, TypeError):
        raise OutputError(f"{output} was not written by this script; name another file") from None


if __name__ == "__main__":
    sys.exit(main())
