"""Put the same questions to two models, and show the answers side by side.

python examples/compare_models.py                                the demo in 16 bits and in 2
python examples/compare_models.py scout-4bit scout-3bit --question "Why is the sky blue?"
python examples/compare_models.py scout-4bit scout-8bit --image sign.jpg --question "What is this?"

One model is in memory at a time. `mlx-llama4 compare` measures how far two models are apart; this
shows what the difference looks like.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common import reports_errors

from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import CHECKPOINT, PICTURES
from mlx_llama4.generation.generate import Statistics
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.hub.repository import find_folder
from mlx_llama4.quantization import Quantization

DEMO_PACKINGS = {"demo-16bit": None, "demo-2bit": Quantization(group_size=64, bits=2)}
DEMO_QUESTIONS = ["Describe the image.", "How many circles are there?"]


@reports_errors
def main(argv: Sequence[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("models", nargs="*", help="two folders or OWNER/NAME")
    parser.add_argument("--question", action="append", help="may be repeated")
    parser.add_argument(
        "--image", action="append", help="a path or URL that goes with every question"
    )
    parser.add_argument("--max-tokens", type=int, default=300)
    arguments = parser.parse_args(argv)
    if len(arguments.models) not in (0, 2):
        parser.error("name two models, or none for the demo")
    images, questions = arguments.image or [], arguments.question or DEMO_QUESTIONS
    if not arguments.question and not images:
        images = [PICTURES / "three.png"]

    options = ChatOptions(GenerationSettings(max_tokens=arguments.max_tokens, temperature=0.0))
    with tempfile.TemporaryDirectory() as temporary:
        folders = [find_folder(model) for model in arguments.models]
        answers = [
            ask(folder, questions, images, options)
            for folder in folders or convert_demo(Path(temporary))
        ]
    names = arguments.models or list(DEMO_PACKINGS)
    for number, question in enumerate(questions):
        print(f"> {question}")
        for name, given in zip(names, answers, strict=True):
            text, took = given[number]
            rate = took.decode_tokens_per_second or 0  # an answer of one token has none
            print(f"{name}  ({took.generated_tokens} tokens, {rate:.1f} a second)\n  {text}")
        print()
    same = sum(first[0] == second[0] for first, second in zip(*answers, strict=True))
    print(f"{same} of {len(questions)} answers are the same, word for word")


def ask(
    folder: Path, questions: list[str], pictures: list[Path | str], options: ChatOptions
) -> list[tuple[str, Statistics]]:
    chat = Chat.open(folder, options)
    images = [chat.open_image(path) for path in pictures]
    answers = []
    for question in questions:
        chat.reset()
        text = "".join(chat.send(question, images))
        answers.append((text, chat.statistics))
    return answers


def convert_demo(folder: Path) -> list[Path]:
    for name, packing in DEMO_PACKINGS.items():
        convert(CHECKPOINT, folder / name, Recipe("bfloat16", packing))
    return [folder / name for name in DEMO_PACKINGS]


if __name__ == "__main__":
    sys.exit(main())
