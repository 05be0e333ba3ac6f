"""Compare two or more pictures: ask one question about all of them, in the order given.

python examples/compare_images.py                                the demo's pictures and question
python examples/compare_images.py before.jpg after.jpg --model scout-4bit
python examples/compare_images.py a.png b.png c.png --question "Which is the sharpest?" --model …

"The second image" in a question is the second one on the command line.
"""

import sys
from collections.abc import Sequence

from common import argument_parser, open_chat, reports_errors

from mlx_llama4.demo.questions import PICTURES
from mlx_llama4.errors import PromptError

DEMO_PICTURES = [PICTURES / "first.png", PICTURES / "second.png"]
DEMO_QUESTION = "Which image has a triangle?"
QUESTION = "What is the same in these images, and what is different?"


@reports_errors
def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("pictures", nargs="*", metavar="PICTURE", help="a path or URL")
    parser.add_argument("--question", help=f"default: {QUESTION}")
    arguments = parser.parse_args(argv)
    pictures = arguments.pictures or DEMO_PICTURES
    if len(pictures) < 2:
        raise PromptError("give two pictures or more to compare")
    question = arguments.question or (QUESTION if arguments.pictures else DEMO_QUESTION)

    chat = open_chat(arguments.model)
    images = [chat.open_image(path) for path in pictures]
    for image in images:
        print(image, file=sys.stderr)
    for piece in chat.send(question, images):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    sys.exit(main())
