"""What a notebook shows of our objects: a line, not arrays and not a tree of modules."""

from dataclasses import replace
from pathlib import Path

from mlx_llama4 import Chat, GenerationSettings
from mlx_llama4.demo.questions import PICTURES
from mlx_llama4.generation.generate import Statistics, Step
from mlx_llama4.opening import open_folder
from mlx_llama4.prompt.image import RememberedImage


def test_pictures(demo_chat: Chat) -> None:
    image = demo_chat.open_image(PICTURES / "three.png")
    assert repr(image) == f"three.png: {image.size[0]}×{image.size[1]}, {image.num_tiles} tiles"
    data = (PICTURES / "star.png").read_bytes()
    assert repr(demo_chat.open_image(data)) == "picture: 56×56, 1 tile"
    assert repr(RememberedImage("d", 5, (2, 2), (224, 224), Path("a/b.png"))) == (
        "b.png: 224×224, 5 tiles"
    )


def test_a_chat_and_what_it_says(demo_chat: Chat) -> None:
    assert repr(demo_chat) == "Chat('demo-8bit', 0 questions)"
    image = demo_chat.open_image(PICTURES / "star.png")
    list(demo_chat.send("What is in the image?", [image]))
    assert repr(demo_chat) == "Chat('demo-8bit', 1 question)"
    assert "array" not in repr(demo_chat.messages)
    prompt = demo_chat.processor.encode(demo_chat.messages)
    assert repr(prompt) == f"Prompt({len(prompt.ids)} tokens, star.png: 56×56, 1 tile)"


def test_models_and_folders(demo_folder: Path, demo_chat: Chat) -> None:
    folder = open_folder(demo_folder)
    assert repr(folder) == f"ModelFolder({str(demo_folder)!r})"
    assert repr(folder.processor) == "Processor(1,019 tokens, tiles of 56 pixels)"
    assert repr(demo_chat.model) == "Llama4(8 layers of 128, 8 experts, text and images)"


def test_statistics_fit_a_line(demo_chat: Chat) -> None:
    demo_chat.options.settings = GenerationSettings(max_tokens=20, logprobs=2)
    list(demo_chat.send("What is 7 plus 5?"))
    told = repr(demo_chat.statistics)
    assert "\n" not in told and len(told) < 200 and Step.__name__ not in told
    fixed = replace(
        Statistics(31, 12, generated_tokens=6, finish_reason="stop"),
        time_to_first_token=0.123,
        prefill_tokens_per_second=150.4,
        decode_tokens_per_second=45.12,
    )
    assert repr(fixed) == (
        "31 tokens read (12 of them cached), 150 tokens/s; first token after 0.12 s; "
        "6 tokens written, 45.1 tokens/s; stop"
    )
    assert repr(Statistics()) == "nothing generated yet"
