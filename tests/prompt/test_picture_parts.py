"""A message's picture, in every way that libraries write it."""

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.errors import ImageError, PromptError
from mlx_llama4.generation.generate import generate
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.prompt.fetch import Fetching
from mlx_llama4.prompt.image import ImageTiler, pixel_table
from mlx_llama4.prompt.processor import Processor
from tests.golden.pictures import draw
from tests.picture_server import Answer, Web, web  # noqa: F401  (a fixture)
from tests.prompt.references import OURS

TEXT = {"type": "text", "text": "What is this?"}


def png() -> bytes:
    stream = io.BytesIO()
    draw(90, 60).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def processor() -> Processor:
    tiler = ImageTiler(28, 4, pixel_table(1 / 255, [0.5] * 3, [0.5] * 3))
    return Processor(OURS.tokenizer, OURS.template, tiler, tokens_per_tile=4)


def encoded(processor: Processor, part: dict[str, Any]) -> tuple[list[int], np.ndarray]:
    prompt = processor.encode([{"role": "user", "content": [part, TEXT]}])
    (image,) = prompt.images
    return prompt.ids.tolist(), image.pixel_values()


def test_every_way_is_the_same_picture(processor: Processor, web: Web, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "a b.png").write_bytes(png())
    web.answers["/a.png"] = Answer(png())
    in_base64 = base64.b64encode(png()).decode()
    data = f"data:image/png;base64,{in_base64}"
    http, path = f"{web.address}/a.png", str(tmp_path / "a b.png")
    processor.fetching = Fetching(private=True)
    ids, pixels = encoded(processor, {"type": "image", "image": png()})
    for part in (
        {"type": "image_url", "image_url": {"url": data, "detail": "high"}},
        {"type": "image_url", "image_url": {"url": http}},
        {"type": "image_url", "image_url": http},
        {"type": "image_url", "image_url": {"url": Path(path).as_uri()}},
        {"type": "input_image", "image_url": data},
        {"type": "image", "url": http},
        {"type": "image", "path": path},
        {"type": "image", "base64": in_base64},
        {"type": "image", "image": http},
        {"type": "image", "image": data},
    ):
        found = encoded(processor, part)
        assert found[0] == ids and np.array_equal(found[1], pixels), part


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"type": "image_url"}, "a message's part has no URL; write"),
        ({"type": "image_url", "image_url": {"uri": "https://x"}}, "a message's part has no URL"),
        ({"type": "image_url", "image_url": 5}, "a message's part has no URL"),
        ({"type": "image"}, "a message part must be a text or an image"),
        ({"type": "image", "url": None}, "a message part must be a text or an image"),
        ({"type": "video_url", "video_url": "x"}, "a message part must be a text or an image"),
        ("What?", "a message part must be a text or an image"),
    ],
)
def test_parts_without_a_picture(processor: Processor, part: object, said: str) -> None:
    with pytest.raises(PromptError) as refused:
        processor.encode([{"role": "user", "content": [part, TEXT]}])
    assert str(refused.value).startswith(said)


def test_messages_may_not_reach_this_machine(processor: Processor, web: Web) -> None:  # noqa: F811
    part = {"type": "image_url", "image_url": {"url": f"{web.address}/a.png"}}
    with pytest.raises(ImageError, match="an address of this machine or its network"):
        encoded(processor, part)
    processor.fetching = replace(processor.fetching, allowed=False)
    with pytest.raises(ImageError, match="is not fetched"):
        encoded(processor, part)
    assert web.asked == []


def test_generate_and_chat_take_them(demo_chat: Chat, tmp_path: Path) -> None:
    from mlx_llama4.demo.questions import PICTURES

    star = PICTURES / "star.png"
    data = f"data:image/png;base64,{base64.b64encode(star.read_bytes()).decode()}"
    parts = [
        {"type": "image_url", "image_url": {"url": data}},
        {"type": "text", "text": "What is in "},
        {"type": "text", "text": "the image?"},
    ]
    settings = GenerationSettings(max_tokens=20)
    said = generate(
        demo_chat.model, demo_chat.processor, [{"role": "user", "content": parts}], settings
    )
    assert said == "From left to right: a red star."
    chat = Chat(demo_chat.model, demo_chat.processor, ChatOptions(settings))
    assert "".join(chat.send("What is in the image?", [star])) == said
    assert "".join(chat.retry()) == said
    chat.reset()
    chat.read("", [data])
    assert "".join(chat.send("What is in the image?")) == said
