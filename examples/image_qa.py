"""Ask a model about pictures, from Python.

python examples/image_qa.py                              the built-in demo model and pictures
python examples/image_qa.py "What is this?" --image photo.jpg --model scout-4bit
"""

import argparse
import sys
import tempfile
from pathlib import Path

from mlx_llama4.chat import Chat
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.stream import convert
from mlx_llama4.demo.questions import CHECKPOINT, PICTURES
from mlx_llama4.errors import Llama4Error


def answer(folder: Path, question: str, pictures: list[Path]) -> None:
    chat = Chat.open(folder)
    for piece in chat.send(question, [chat.open_image(path) for path in pictures]):
        print(piece, end="", flush=True)
    statistics = chat.statistics
    print(
        f"\n{statistics.image_tiles} tiles took {statistics.image_tokens} of "
        f"{statistics.prompt_tokens} prompt tokens; the first word came after "
        f"{statistics.time_to_first_token:.2f} s",
        file=sys.stderr,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a model about pictures.")
    parser.add_argument("question", nargs="?", default="Describe the image.")
    parser.add_argument("--image", type=Path, action="append", help="a picture; may be repeated")
    parser.add_argument("--model", type=Path, help="a converted model; default: the demo's")
    arguments = parser.parse_args()
    pictures = arguments.image or [PICTURES / "three.png"]
    try:
        if arguments.model is not None:
            answer(arguments.model, arguments.question, pictures)
            return
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "demo"
            convert(CHECKPOINT, folder, Recipe("bfloat16", quantization=None))
            answer(folder, arguments.question, pictures)
    except Llama4Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
