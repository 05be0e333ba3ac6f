"""Conversations in files whose checksums are right, but whose contents a stranger wrote."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.demo.questions import PICTURES
from mlx_llama4.errors import Llama4Error
from mlx_llama4.files.safetensors_file import CHECKSUMS, load_safetensors, write_safetensors
from tests.test_attacked import mutate_json


class Saved:
    """A conversation with a document, a picture and a few turns, in parts."""

    def __init__(self, path: Path, chat: Chat):
        chat.options = ChatOptions()
        chat.document = []
        chat.reset()
        chat.read("The code of walnut is 407.")
        list(chat.send("What is the code of walnut?"))
        list(chat.send("What is in the image?", [chat.open_image(PICTURES / "star.png")]))
        chat.save(path)
        self.path = path
        self.arrays: dict[str, mx.array] = dict(load_safetensors(path))
        mx.eval(list(self.arrays.values()))
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        self.metadata: dict[str, str] = header["__metadata__"]
        del self.metadata[CHECKSUMS]
        self.conversation: Any = json.loads(bytes(np.array(self.arrays["conversation"])))
        self.images: Any = json.loads(self.metadata["images"])

    def write(self, conversation: Any, images: Any) -> None:
        text = conversation if isinstance(conversation, str) else json.dumps(conversation)
        array = mx.array(np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8))
        metadata = self.metadata | {"images": json.dumps(images)}
        self.path.unlink(missing_ok=True)
        write_safetensors(self.path, self.arrays | {"conversation": array}, metadata)


@pytest.fixture
def saved(opened: Chat, tmp_path: Path) -> Saved:
    return Saved(tmp_path / "a.cache", opened)


def use(chat: Chat, path: Path) -> bool:
    """Load the conversation and do with it what a terminal does; returns whether it was taken."""
    chat.document = []
    chat.reset()
    try:
        chat.load(path)
    except Llama4Error as refusal:
        assert str(refusal).isprintable()
        return False
    try:
        chat.processor.encode([*chat.messages, {"role": "user", "content": "What is 2 plus 3?"}])
        chat.fork().rewind()
        chat.reset()
        chat.open_prompt(chat.document)
    except Llama4Error as refusal:
        assert str(refusal).isprintable()
    return True


def attack(chat: Chat, saved: Saved, count: int, seed: int) -> int:
    """Mutate conversation or pictures `count` times; return how many were taken."""
    chance, taken = random.Random(seed), 0
    for _ in range(count):
        conversation, images = copy.deepcopy([saved.conversation, saved.images])
        mutate_json(images if chance.random() < 0.3 else conversation, chance)
        saved.write(conversation, images)
        taken += use(chat, saved.path)
    return taken


def test_as_saved(opened: Chat, saved: Saved) -> None:
    saved.write(saved.conversation, saved.images)
    assert use(opened, saved.path)


def test_mutated_conversations(opened: Chat, saved: Saved) -> None:
    assert 0 < attack(opened, saved, 60, 0) < 60


@pytest.mark.slow
def test_many_mutated_conversations(opened: Chat, saved: Saved) -> None:
    assert 0 < attack(opened, saved, 600, 1) < 600


@pytest.mark.parametrize("field", ["messages", "document"])
@pytest.mark.parametrize("value", ["", "hello", {}, 5, None, ["a"], [[]], [5]])
def test_no_list_of_messages(opened: Chat, saved: Saved, field: str, value: Any) -> None:
    saved.write(saved.conversation | {field: value}, saved.images)
    assert not use(opened, saved.path)


@pytest.mark.parametrize("token", [-1, 2**31, 2**70, 0.5, True, "a", None, [1]])
def test_tokens_that_are_none(opened: Chat, saved: Saved, token: Any) -> None:
    answer = next(m for m in saved.conversation["messages"] if m.get("token_ids"))
    answer["token_ids"][0] = token
    saved.write(saved.conversation, saved.images)
    assert not use(opened, saved.path)


PICTURES_OF_STRANGERS: list[tuple[int, Any]] = [
    (0, None), (0, [1]), (1, 0), (1, 2**40), (1, "1"), (1, 2), (2, [1]), (2, [1, 1, 1]),
    (2, [0, 1]), (2, [-1, -1]), (2, [2**20, 2**20]), (2, "ab"), (3, [1]), (3, [0, 9]), (3, None),
    (4, 5), (4, ["a"]),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), PICTURES_OF_STRANGERS)
def test_pictures_that_cannot_be(opened: Chat, saved: Saved, place: int, value: Any) -> None:
    described = saved.conversation["messages"][-2]["content"][0]["image"]
    assert len(described) == 5
    described[place] = value
    saved.write(saved.conversation, saved.images)
    assert not use(opened, saved.path)


def test_deep_ones(opened: Chat, saved: Saved) -> None:
    saved.write("[" * 5000, saved.images)
    assert not use(opened, saved.path)
