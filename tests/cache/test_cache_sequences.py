"""Whatever is done to a cache, what comes next is what a single fresh pass gives.

A stateful property test: prefill in any steps, decode, cut, rewind over borders, save, load, go
back to what another prompt left, fork, be interrupted anywhere; plain or packed; with pictures.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mlx_llama4.cache.prefixes import PrefixStore
from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.cache.prompt_file import PromptFile, save_prompt_file
from mlx_llama4.checkpoint.identity import Identity
from mlx_llama4.generation.image_features import ImageFeatureCache
from mlx_llama4.generation.prefill import prefill
from mlx_llama4.model.block import Block
from mlx_llama4.prompt.prompt import place_images
from mlx_llama4.quantization import KVQuantization
from tests.prompts import Text, picture, words
from tests.proofs import scaled
from tests.small_model import CHUNK, DENSE, PACKED_ERROR, model_of
from tests.tolerance import tolerance

IDENTITY = Identity("tiny", "model", "tokenizer")
CASES = [
    ("scout", None),
    ("maverick", None),
    ("scout", KVQuantization(8, 32)),
    ("maverick", KVQuantization(4, 32)),
    (DENSE, KVQuantization(8, 32)),
    (DENSE, KVQuantization(8, 32, after=20)),
]


# Few, so that prompts begin alike.
WORDS = st.builds(words, st.integers(0, 3), st.integers(1, 3 * CHUNK))
PARTS = WORDS | st.integers(0, 3).map(picture)


class Sequences(RuleBasedStateMachine):
    """`text` is what the cache is to hold; what it does hold may be less, after a rewind."""

    @initialize(case=st.sampled_from(CASES), budget=st.sampled_from([0, 20_000, 10**7]))
    def begin(self, case: tuple[str, KVQuantization | None], budget: int) -> None:
        self.preset, self.packing = case
        self.model, packing = model_of(self.preset), self.packing
        self.features = ImageFeatureCache()
        self.cache = PromptCache(self.model.make_cache(packing))
        self.store = PrefixStore(CHUNK, budget)
        self.text = Text()
        self.earlier: list[Text] = [Text()]
        self.folder = Path(tempfile.mkdtemp())

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def images(self, text: Text) -> list:
        return place_images(text.prompt, self.model.config)

    def check(self, text: Text, logits: mx.array) -> None:
        if self.packing is None:
            assert_close(logits, self.fresh(text, None), tolerance("images"))
        if self.packing is not None and not self.packing.after:
            # What is stored does not depend on the steps, but for a value between two codes.
            assert_close(logits, self.fresh(text, self.packing), PACKED_ERROR)
        if self.preset == DENSE:
            assert_close(logits, self.fresh(text, None), PACKED_ERROR)

    def fresh(self, text: Text, packing: KVQuantization | None) -> mx.array:
        """The last logits of one pass over all, with an empty cache."""
        features = [self.features.get(self.model, image) for image in text.images]
        embeddings = self.model.embed(
            text.prompt.ids[None], mx.concatenate(features) if features else None
        )
        return self.model(embeddings, self.model.make_cache(packing), last_only=True)[:, -1]

    def feed(self, text: Text, span: int, by_prefix: bool = True) -> None:
        if by_prefix:
            held = self.store.fit(self.cache, text.prompt.ids, self.images(text))
            assert held == len(self.cache.ids) < len(text.ids)
        logits = prefill(
            self.model, text.prompt, self.cache.layers, span=span, features=self.features
        )
        self.cache.record(text.prompt.ids, self.images(text))
        assert {layer.offset for layer in self.cache.layers} == {len(text.ids)}
        self.text = text
        self.check(text, logits)

    @rule(part=PARTS, span=st.integers(1, 40))
    def go_on(self, part: Text, span: int) -> None:
        self.feed(self.text + part, span)

    @rule(count=st.integers(1, 4), seed=st.integers(0, 9))
    @precondition(lambda self: len(self.cache.ids) == len(self.text.ids) > 0)
    def decode(self, count: int, seed: int) -> None:
        for token in words(seed, count).ids:
            logits = self.model(mx.array([[token]]), self.cache.layers)[:, -1]
            self.text = self.text + Text((token,))
            self.check(self.text, logits)
        self.cache.record(self.text.prompt.ids, self.images(self.text))

    @rule()
    @precondition(lambda self: len(self.cache.ids) > 0)
    def remember_the_end(self) -> None:
        self.store.keep_tail(self.cache)
        self.earlier.append(self.text)

    @rule(share=st.floats(0, 1), part=WORDS, span=st.integers(1, 40), by_prefix=st.booleans())
    @precondition(lambda self: len(self.text.ids) > 0)
    def cut_and_go_on(self, share: float, part: Text, span: int, by_prefix: bool) -> None:
        self.earlier.append(self.text)
        text = self.text.cut(self.model, round(share * len(self.text.ids)))
        position, before = len(text.ids), len(self.cache.ids)
        reached = self.cache.rewind(position)
        position = min(position, before)
        if position // CHUNK == before // CHUNK or position % CHUNK == 0:
            assert reached == position  # inside the chunk, or at a border: nothing to feed again
        else:
            assert reached in (position, position // CHUNK * CHUNK)
        self.feed(text + part, span, by_prefix)

    @rule(data=st.data(), part=PARTS, span=st.integers(1, 40))
    def turn_to_an_earlier_one(self, data: st.DataObject, part: Text, span: int) -> None:
        self.earlier.append(self.text)
        self.feed(data.draw(st.sampled_from(self.earlier)) + part, span)

    @rule(small=st.booleans())
    @precondition(lambda self: len(self.cache.ids) > 0)
    def save_and_load(self, small: bool) -> None:
        path = self.folder / "saved.safetensors"
        known = lambda image: self.features.get(self.model, image)  # noqa: E731
        save_prompt_file(path, self.cache, IDENTITY, features_of=known, small=small)
        file = PromptFile(path)
        file.check(IDENTITY, self.packing)
        before = len(self.cache.ids)
        loaded = file.load(self.model.make_cache(self.packing), mx.float32)
        assert np.array_equal(loaded.ids, self.cache.ids)
        self.cache = loaded.cache
        assert len(self.cache.ids) == (before // CHUNK * CHUNK if small else before)

    @rule(part=PARTS, call=st.integers(0, 30), span=st.integers(1, 40))
    def be_interrupted(self, part: Text, call: int, span: int) -> None:
        text, forward, calls = self.text + part, Block.attend, iter(range(1000))

        def interrupted(self: Block, *args: object) -> mx.array:
            output = forward(self, *args)
            if next(calls) == call:
                raise KeyboardInterrupt
            return output

        self.store.fit(self.cache, text.prompt.ids, self.images(text))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Block, "attend", interrupted)
            with contextlib.suppress(KeyboardInterrupt):
                prefill(
                    self.model, text.prompt, self.cache.layers, span=span, features=self.features
                )
        self.cache.record(text.prompt.ids, self.images(text))
        assert {layer.offset for layer in self.cache.layers} == {len(self.cache.ids)}
        self.feed(text + words(1, 1), span)

    @rule(part=PARTS, other=PARTS, goes_on_with_copy=st.booleans())
    def fork(self, part: Text, other: Text, goes_on_with_copy: bool) -> None:
        text, cache, copied = self.text, self.cache, self.cache.copy()
        self.cache = copied
        self.feed(text + part, span=7)
        if not goes_on_with_copy:
            self.cache = cache
            self.feed(text + other, span=9)


def assert_close(logits: mx.array, expected: mx.array, most: float) -> None:
    assert float(mx.abs(logits - expected).max()) <= most


def run(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Sequences,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_sequences() -> None:
    run(examples=100, steps=8)


@pytest.mark.slow
@pytest.mark.prove("sequences")
def test_many_sequences() -> None:
    examples = scaled(1000, long=10_000)
    run(examples, steps=10)
    print(f"\n{examples} sequences of up to 10 steps")
