"""Ask one question about each picture of a folder, several at once; answers as they are done.

python examples/folder_together.py                               the demo's pictures
python examples/folder_together.py photos --question "What is on sale here?" --model scout-4bit
python examples/folder_together.py photos --rows 16 --model scout-4bit > answers.txt

Pictures are opened and read as rows become free, so memory grows only with --rows. A file that is
not a picture gets a line on standard error and stops nothing; the exit code is then 1.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import argument_parser, open_chat, reports_errors
from folder_to_jsonl import find_pictures

from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.demo.questions import PICTURES
from mlx_llama4.errors import ImageError, Llama4Error, RunError
from mlx_llama4.generation.batch import BATCH_SIZE, Request, generate_batch
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.prompt.messages import user_message


@reports_errors
def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=PICTURES, help="with the folders in it"
    )
    parser.add_argument("--question", default="Describe the image.")
    parser.add_argument("--rows", type=int, default=BATCH_SIZE, help="answered at once, at most")
    parser.add_argument("--max-tokens", type=int, default=500)
    arguments = parser.parse_args(argv)
    pictures = find_pictures(arguments.folder)

    settings = GenerationSettings(max_tokens=arguments.max_tokens, temperature=0.0)
    chat = open_chat(arguments.model, ChatOptions(settings, prefix_bytes=0))
    failed = []
    for path, answer in answers(chat, pictures, arguments.question, arguments.rows):
        name = path.relative_to(arguments.folder)
        if isinstance(answer, Llama4Error):
            failed.append(path)
            print(f"{name}: {answer}", file=sys.stderr)
        else:
            print(f"{name}: {answer}", flush=True)
    if failed:
        raise RunError(f"{len(failed)} of {len(pictures)} pictures have no answer")


def answers(
    chat: Chat, pictures: Sequence[Path], question: str, rows: int
) -> Iterator[tuple[Path, str | Llama4Error]]:
    """Each picture with its answer or error, whichever is done first."""
    asked: list[Path] = []  # by the number of its request
    said: dict[int, str] = {}
    unread: list[tuple[Path, Llama4Error]] = []

    def requests() -> Iterator[Request]:
        for path in pictures:
            try:
                prompt = chat.processor.encode([user_message(question, [chat.open_image(path)])])
            except ImageError as failure:
                unread.append((path, failure))
                continue
            asked.append(path)
            yield Request(prompt, chat.settings)

    steps = generate_batch(chat.model, chat.processor, requests(), batch_size=rows)
    for number, step in steps:
        if isinstance(step, Llama4Error):
            yield asked[number], step
            continue
        said[number] = said.get(number, "") + step.text
        if step.finish_reason is not None:
            yield asked[number], said.pop(number)
    yield from unread


if __name__ == "__main__":
    sys.exit(main())
