"""Ask several questions about a chart, a table or the pages of a document.

python examples/chart_questions.py                               the demo's picture and questions
python examples/chart_questions.py chart.png "What was sold in March?" --model scout-4bit
python examples/chart_questions.py page1.png page2.png "Who signed it?" "When?" --model scout-4bit

Names of files that exist are pictures; everything else is a question. The pictures are encoded and
read once. Each question then stands on its own, so one answer cannot mislead the next.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from common import argument_parser, open_chat, reports_errors

from mlx_llama4.chat import ChatOptions
from mlx_llama4.demo.questions import PICTURES
from mlx_llama4.errors import PromptError

DEMO_PICTURES = [PICTURES / "two.png"]
DEMO_QUESTIONS = ["How many shapes are there?", "What is on the right?"]
QUESTIONS = [
    "What does this show? Name the title, the axes and their units, as far as there are any.",
    "List all values that can be read, as a Markdown table.",
]
# Models are quick to make up what they cannot read.
SYSTEM = "Answer from the images alone. If something cannot be read there, say so."


@reports_errors
def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("given", nargs="*", metavar="PICTURE or QUESTION")
    arguments = parser.parse_args(argv)
    pictures = [Path(given) for given in arguments.given if is_file(given)]
    questions = [given for given in arguments.given if not is_file(given)]
    if arguments.given and not pictures:
        raise PromptError(f"{arguments.given[0]} is not a file; name a picture first")
    if not arguments.given:
        pictures, questions = DEMO_PICTURES, DEMO_QUESTIONS

    # The demo's model has learnt no system prompts.
    system = SYSTEM if arguments.model is not None else None
    chat = open_chat(arguments.model, ChatOptions(system=system))
    tokens = chat.read("", [chat.open_image(path) for path in pictures])
    print(f"{len(pictures)} pictures read, {tokens:,} tokens", file=sys.stderr)
    for question in questions or QUESTIONS:
        chat.reset()
        print(f"> {question}")
        for piece in chat.send(question):
            print(piece, end="", flush=True)
        print("\n")


def is_file(given: str) -> bool:
    try:
        return Path(given).is_file()
    except OSError:  # a question may be longer than a name can be
        return False


if __name__ == "__main__":
    sys.exit(main())
