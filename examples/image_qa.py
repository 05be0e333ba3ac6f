"""Ask about pictures, see the answer as it comes, and what it cost.

python examples/image_qa.py                                      the built-in demo model and picture
python examples/image_qa.py "What is this?" --image photo.jpg --model scout-4bit
"""

import sys
from collections.abc import Sequence

from common import argument_parser, open_chat, reports_errors

from mlx_llama4.demo.questions import PICTURES


@reports_errors
def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("question", nargs="?", default="Describe the image.")
    parser.add_argument("--image", action="append", help="a path or URL; may be repeated")
    arguments = parser.parse_args(argv)
    chat = open_chat(arguments.model)
    images = [chat.open_image(path) for path in arguments.image or [PICTURES / "three.png"]]
    for piece in chat.send(arguments.question, images):
        print(piece, end="", flush=True)
    statistics = chat.statistics
    print(
        f"\n{statistics.image_tiles} tiles took {statistics.image_tokens} of "
        f"{statistics.prompt_tokens} prompt tokens; the first word came after "
        f"{statistics.time_to_first_token:.2f} s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
