"""Write the text in screenshots to standard output.

python examples/screenshot_to_text.py                            the demo, which can only describe
python examples/screenshot_to_text.py "Screenshot 2025-04-05 at 9.41.00 AM.png" --model scout-4bit
python examples/screenshot_to_text.py *.png --model scout-4bit > text.md

If there are several pictures, each gets a heading. If a text was longer than --max-tokens, the
exit code is 1.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from common import argument_parser, open_chat, reports_errors

from mlx_llama4.chat import ChatOptions
from mlx_llama4.demo.questions import PICTURES
from mlx_llama4.errors import RunError
from mlx_llama4.generation.settings import GenerationSettings

PROMPT = (
    "Write out all text in this image exactly as it stands, in reading order, line by line; "
    "tables and code as Markdown. Add nothing and leave nothing out."
)
DEMO_PICTURES = [PICTURES / "two.png"]
DEMO_PROMPT = "Describe the image."


@reports_errors
def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE")
    parser.add_argument("--prompt", help=f"default: {PROMPT}")
    parser.add_argument("--max-tokens", type=int, default=4096)
    arguments = parser.parse_args(argv)
    pictures = arguments.pictures or DEMO_PICTURES
    prompt = arguments.prompt or (PROMPT if arguments.pictures else DEMO_PROMPT)

    # Greedy: a copy leaves nothing to chance.
    settings = GenerationSettings(max_tokens=arguments.max_tokens, temperature=0.0)
    chat = open_chat(arguments.model, ChatOptions(settings, prefix_bytes=0))
    cut = []
    for path in pictures:
        chat.reset()
        image = chat.open_image(path)
        if len(pictures) > 1:
            print(f"# {path.name}\n")
        for piece in chat.send(prompt, [image]):
            print(piece, end="", flush=True)
        print("\n" if len(pictures) > 1 else "")
        if chat.statistics.finish_reason == "length":
            cut.append(path.name)
    if cut:
        raise RunError(f"cut at --max-tokens {arguments.max_tokens}: {', '.join(cut)}")


if __name__ == "__main__":
    sys.exit(main())
