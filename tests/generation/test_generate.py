"""`generate` in two lines, as those write them who come from mlx-lm."""

from pathlib import Path

import pytest

from mlx_llama4 import Chat, ChatOptions, GenerationSettings, generate, load
from mlx_llama4.config import GenerationConfig
from mlx_llama4.demo.questions import PICTURES
from mlx_llama4.errors import ImageError, InputError, PromptError
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.processor import Processor


@pytest.fixture(scope="module")
def opened(demo_folder: Path) -> tuple[Llama4, Processor]:
    return load(demo_folder)


def test_two_lines(demo_folder: Path) -> None:
    model, processor = load(demo_folder)
    assert generate(model, processor, "What is 7 plus 5?") == "7 plus 5 is 12."


def test_it_answers_as_a_chat_does(opened: tuple[Llama4, Processor]) -> None:
    picture, system = PICTURES / "star.png", "Be kind."
    for settings in (GenerationSettings(), GenerationSettings(temperature=1.0, seed=5)):
        chat = Chat(*opened, ChatOptions(settings, system=system))
        expected = "".join(chat.send("Describe the image.", [chat.open_image(picture)]))
        question = "Describe the image."
        assert generate(*opened, question, settings, images=[picture], system=system) == expected
        messages = [
            {"role": "system", "content": system},
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": picture},
                    {"type": "text", "text": question},
                ],
            },
        ]
        assert generate(*opened, messages, settings) == expected
        prompt = opened[1].encode(messages)
        assert generate(*opened, prompt, settings) == expected


def test_shortcuts_and_the_model_s_defaults(opened: tuple[Llama4, Processor]) -> None:
    processor = opened[1]
    whole = generate(*opened, "Hello")
    assert whole.startswith(generate(*opened, "Hello", max_tokens=2)) and len(whole) > 5
    hot = GenerationSettings(max_tokens=8, seed=1)
    drawn = generate(*opened, "Hello", hot, temperature=9.0)
    assert not whole.startswith(drawn)
    was, processor.defaults = processor.defaults, GenerationConfig((), True, 9.0)
    try:
        assert generate(*opened, "Hello", hot) == drawn
    finally:
        processor.defaults = was


def test_verbose(opened: tuple[Llama4, Processor], capsys: pytest.CaptureFixture[str]) -> None:
    answer = generate(*opened, "Hello", verbose=True)
    shown, read, written = capsys.readouterr().out.splitlines()
    assert shown == answer
    assert " tokens read, " in read and " tokens written, " in written


def test_what_cannot_be_answered(opened: tuple[Llama4, Processor]) -> None:
    for bad, message in (
        (" ", "the question is empty"),
        ([], "there are no messages"),
        (7, "a prompt is a text, messages or a Prompt, not int"),
        (["Hello"], "a prompt is a text, messages or a Prompt, not list"),
        ([{"role": "user"}], "a message's content must be a text or a list, not None"),
        ([{"role": "robot", "content": "x"}], "a message has the role 'robot'"),
    ):
        with pytest.raises(PromptError, match=message) as raised:
            generate(*opened, bad)
        assert "\n" not in str(raised.value)
    with pytest.raises(PromptError, match="images and system go with a question"):
        generate(*opened, [{"role": "user", "content": "x"}], system="Be kind.")
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        generate(*opened, "What is this?", images=["nowhere.png"])
    with pytest.raises(InputError, match="max_tokens 0 must be 1 or more"):
        generate(*opened, "Hello", max_tokens=0)
