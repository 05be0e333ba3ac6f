"""Read a long text once, then ask several questions about it, each on its own.

python examples/long_text.py                                     the demo's notes and questions
python examples/long_text.py book.txt "Who did it?" "Where?" --model scout-4bit
python examples/long_text.py book.txt "And why?" --model scout-4bit --cache book.safetensors

With --cache what was read is saved, and the next run begins with it, whatever its questions.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from common import argument_parser, open_chat, reports_errors

from mlx_llama4.demo.questions import NOTES
from mlx_llama4.errors import PromptError

DEMO_QUESTIONS = ["What is the code of walnut?", "What is 7 plus 5?"]
QUESTIONS = ["Summarise the text in five sentences."]


@reports_errors
def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("text", nargs="?", type=Path, help="a file in UTF-8")
    parser.add_argument("questions", nargs="*", metavar="question")
    parser.add_argument("--cache", type=Path, help="a file for what was read; made if missing")
    arguments = parser.parse_args(argv)
    text = NOTES if arguments.text is None else read_text(arguments.text)
    questions = arguments.questions or (DEMO_QUESTIONS if arguments.text is None else QUESTIONS)

    chat = open_chat(arguments.model)
    saved = arguments.cache is not None and arguments.cache.exists()
    if saved:
        chat.load(arguments.cache)
    # Only what a loaded cache does not hold of the text is read: all of it, if it is another text.
    tokens = chat.read(text, on_prefill=show_progress)
    print(f"\r{tokens:,} tokens of text are there", file=sys.stderr)
    if arguments.cache is not None and not saved:
        chat.save(arguments.cache)
    for question in questions:
        chat.reset()  # forgets the question before, not the text
        print(f"\n> {question}")
        for piece in chat.send(question):
            print(piece, end="", flush=True)
        print()
        statistics = chat.statistics
        print(
            f"({statistics.cached_tokens:,} of {statistics.prompt_tokens:,} tokens were there; "
            f"the first word came after {statistics.time_to_first_token:.2f} s)",
            file=sys.stderr,
        )


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise PromptError(f"{path} is not a text in UTF-8") from None


def show_progress(tokens: int, of: int) -> None:
    print(f"\rreading: {tokens:,} of {of:,} tokens", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
