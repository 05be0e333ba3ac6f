"""mlx-lm and mlx-vlm read the demo as what it is, so answers to it can be compared with theirs.

They have every fourth layer global, whatever config.json says, and so has the demo. Two constants
of theirs are wrong, which the demo's answers do not depend on: the epsilon of the QK norm, and
mlx-vlm's GELU in the vision tower, which is an approximation. Pictures are given to mlx-vlm as our
tiles: its own leave out the global tile, and stretch.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from benchmarks.harness.demo_tasks import draw_tasks
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import CHECKPOINT, PICTURES, QUESTIONS
from mlx_llama4.opening import load
from mlx_llama4.prompt.messages import user_message
from mlx_llama4.prompt.processor import Processor
from mlx_llama4.prompt.prompt import Prompt

# Of the spread (standard deviation) of our logits.
TOLERANCE = 1e-4
MAX_TOKENS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in float32."""
    made = tmp_path_factory.mktemp("demo") / "demo-float32"
    convert(CHECKPOINT, made, Recipe("float32", None))
    return made


def text_prompts(processor: Processor) -> list[tuple[Prompt, str]]:
    """Prompts without pictures, and the answer that is right: notes of two chunks among them."""
    asked = [(q.context + q.text, q.expected) for q in QUESTIONS if not q.pictures]
    asked += [(task.text, task.expected) for task in draw_tasks(4, 1) if not task.pictures]
    return [(processor.encode([user_message(text, [])]), answer) for text, answer in asked]


def picture_prompts(processor: Processor) -> list[tuple[Prompt, str]]:
    prompts = []
    for question in (q for q in QUESTIONS if q.pictures):
        pictures = [processor.tile(PICTURES / name) for name in question.pictures]
        prompt = processor.encode([user_message(question.text, pictures)])
        prompts.append((prompt, question.expected))
    return prompts


def assert_same(theirs: mx.array, ours: mx.array) -> None:
    """Within TOLERANCE of the spread, all positions; and the same winners."""
    difference = (mx.abs(theirs - ours).max() / mx.std(ours)).item()
    print(f"{ours.shape[1]} tokens: {difference:.1e} of the spread")
    assert difference <= TOLERANCE
    assert mx.array_equal(theirs.argmax(-1), ours.argmax(-1))


def greedy(logits_of: Callable[[mx.array], mx.array], first: mx.array, processor: Processor) -> str:
    """The text of an answer, token by token, until the turn ends."""
    logits, tokens = logits_of(first), b""
    for _ in range(MAX_TOKENS):
        token = int(logits[0, -1].argmax())
        if token in processor.end_tokens:
            break
        tokens += processor.token_bytes(token)
        logits = logits_of(mx.array([[token]]))
    return tokens.decode()


def test_mlx_lm_s_logits_are_ours(folder: Path, mlx_lm: ModuleType, right_epsilon: None) -> None:
    model, processor = load(folder)
    peer, _ = mlx_lm.load_model(folder)
    for prompt, _ in text_prompts(processor):
        ids = mx.array(prompt.ids)[None]
        assert_same(peer(ids), model(ids))


def test_mlx_lm_as_it_is_gives_the_same_answers(folder: Path, mlx_lm: ModuleType) -> None:
    _, processor = load(folder)
    peer, _ = mlx_lm.load_model(folder)
    for prompt, answer in text_prompts(processor):
        cache = peer.make_cache()
        found = greedy(lambda ids: peer(ids, cache), mx.array(prompt.ids)[None], processor)  # noqa: B023
        assert found == answer


@pytest.fixture
def exact_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let mlx-vlm's vision tower use the GELU that the config names."""
    monkeypatch.setattr(nn.GELU, "__call__", lambda self, x: nn.gelu(x))


@pytest.fixture(scope="module")
def mlx_vlm() -> Iterator[ModuleType]:
    yield pytest.importorskip("mlx_vlm.utils", reason="needs the peers extra")


def vlm_embeddings(peer: nn.Module, prompt: Prompt) -> mx.array:
    tiles = np.concatenate([image.tiles for image in prompt.images]) if prompt.images else None
    pixels = None if tiles is None else mx.array(tiles)
    return peer.get_input_embeddings(mx.array(prompt.ids)[None], pixels).inputs_embeds


@pytest.mark.peers
def test_mlx_vlm_s_logits_are_ours(
    folder: Path, mlx_vlm: ModuleType, right_epsilon: None, exact_gelu: None
) -> None:
    model, processor = load(folder)
    peer = mlx_vlm.load_model(folder)
    for prompt, _ in text_prompts(processor) + picture_prompts(processor):
        ids, embeddings = mx.array(prompt.ids)[None], vlm_embeddings(peer, prompt)
        tiles = [image.tiles for image in prompt.images]
        features = model.image_features(np.concatenate(tiles)) if tiles else None
        ours = model(model.embed(prompt.ids[None], features))
        assert_same(peer.language_model(ids, inputs_embeds=embeddings).logits, ours)


@pytest.mark.peers
def test_mlx_vlm_as_it_is_gives_the_same_answers(folder: Path, mlx_vlm: ModuleType) -> None:
    _, processor = load(folder)
    peer = mlx_vlm.load_model(folder)
    for prompt, answer in text_prompts(processor) + picture_prompts(processor):
        cache = peer.language_model.make_cache()

        def logits_of(x: mx.array, cache: list = cache) -> mx.array:
            """x: ids [1, L], or embeddings [1, L, D]."""
            given = {"inputs": x} if x.ndim == 2 else {"inputs": None, "inputs_embeds": x}
            return peer.language_model(**given, cache=cache).logits

        assert greedy(logits_of, vlm_embeddings(peer, prompt), processor) == answer
