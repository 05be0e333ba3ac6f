"""What earlier prompts left is found again by what they were, and goes when room is short."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlx_llama4.cache.prefixes import PrefixStore
from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.least_recently_used import LeastRecentlyUsed
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.image import RememberedImage
from mlx_llama4.prompt.prompt import PlacedImage
from tests import tiny

CHUNK = 32
BLOCK_BYTES = 2 * CHUNK * 2 * 2 * 16 * 4  # of 2 global layers' keys and values


def text(seed: int, length: int) -> np.ndarray:
    return tiny.text_ids(length, seed)[0].astype(np.int32)


def read(
    store: PrefixStore, cache: PromptCache, model: Llama4, ids: np.ndarray, images: list = ()
) -> int:
    """Feed a prompt as a Chat does; how much of it was there before."""
    held = store.fit(cache, ids, images)
    mx.eval(model(mx.array(ids[None, held:]), cache.layers))
    cache.record(ids, images)
    return held


def test_documents_taking_turns(golden_model: Callable[[str], Llama4]) -> None:
    """Each is read once; when it comes again, only what follows its last border is."""
    model = golden_model("scout")
    store, cache = PrefixStore(CHUNK, 10**9), PromptCache(model.make_cache())
    first, second = text(1, 110), text(2, 70)
    assert read(store, cache, model, first) == 0
    assert store.nbytes == 0  # what a conversation holds is not kept twice
    assert read(store, cache, model, second) == 0
    assert store.nbytes == 3 * BLOCK_BYTES
    question = np.concatenate([first, text(3, 9)])
    assert read(store, cache, model, question) == 96
    assert store.nbytes == 5 * BLOCK_BYTES
    assert read(store, cache, model, np.concatenate([second, text(4, 9)])) == 64
    mixed = np.concatenate([second[:40], first[40:]])
    assert read(store, cache, model, mixed) == 32
    assert read(store, cache, model, question) == 96
    assert store.nbytes == 7 * BLOCK_BYTES  # the first block of the mixed one was there


def test_room_for_the_beginning_only(golden_model: Callable[[str], Llama4]) -> None:
    """The first chunks are what the later ones need: they are the last to go."""
    model = golden_model("maverick")
    store, cache = PrefixStore(CHUNK, 2 * BLOCK_BYTES), PromptCache(model.make_cache())
    first = text(1, 170)
    read(store, cache, model, first)
    read(store, cache, model, text(2, 10))
    assert store.nbytes == 2 * BLOCK_BYTES
    assert read(store, cache, model, first) == 64
    read(store, cache, model, text(3, 40))
    read(store, cache, model, text(4, 10))  # one block of the other takes the place of one
    assert store.nbytes == 2 * BLOCK_BYTES
    assert read(store, cache, model, first) == 32


def test_what_is_dropped_does_not_push_out_what_is_looked_for(
    golden_model: Callable[[str], Llama4],
) -> None:
    """Two documents that fill the room each can still take turns."""
    model = golden_model("scout")
    store, cache = PrefixStore(CHUNK, 3 * BLOCK_BYTES), PromptCache(model.make_cache())
    first, second = text(1, 100), text(2, 100)
    read(store, cache, model, first)
    read(store, cache, model, second)
    for ids in (first, second, first):
        assert store.reach(cache, ids, []) == 96
        assert read(store, cache, model, ids) == 96
        assert store.nbytes == 3 * BLOCK_BYTES


def test_nothing_is_kept_without_room_or_borders(golden_model: Callable[[str], Llama4]) -> None:
    for name, store in (("scout", PrefixStore(CHUNK, 0)), ("one_chunk", PrefixStore(None, 10**9))):
        model = golden_model(name)
        cache = PromptCache(model.make_cache())
        first = text(1, 90)
        read(store, cache, model, first)
        assert read(store, cache, model, first) == 89
        store.keep_tail(cache)
        read(store, cache, model, text(2, 90))
        assert read(store, cache, model, first) == 0
        assert store.nbytes == 0


def test_pictures_are_part_of_the_key(golden_model: Callable[[str], Llama4]) -> None:
    """Same tokens, other picture: the blocks before it are shared, those from it on are not."""
    model, ids = golden_model("scout"), text(1, 100)
    one, other = (
        [PlacedImage(RememberedImage(digest, 1, (1, 1), (9, 9)), 40, 44)] for digest in "ab"
    )
    store, cache = PrefixStore(CHUNK, 10**9), PromptCache(model.make_cache())
    read(store, cache, model, ids, one)
    assert read(store, cache, model, ids, other) == 32
    read(store, cache, model, text(2, 10))
    assert read(store, cache, model, ids, one) == 96
    read(store, cache, model, text(2, 10))
    assert read(store, cache, model, ids, other) == 96
    read(store, cache, model, text(2, 10))
    assert read(store, cache, model, ids, []) == 32


def test_ends_that_are_remembered(golden_model: Callable[[str], Llama4]) -> None:
    """Whatever came behind them, over however many borders, and after other documents too."""
    model = golden_model("scout")
    store, cache = PrefixStore(CHUNK, 10**9), PromptCache(model.make_cache())
    document = text(1, 75)
    longer = np.concatenate([document, text(2, 10)])
    read(store, cache, model, document)
    store.keep_tail(cache)
    assert read(store, cache, model, np.concatenate([document, text(3, 60)])) == 75
    assert read(store, cache, model, np.concatenate([document, text(4, 60)])) == 75
    read(store, cache, model, text(5, 10))
    assert read(store, cache, model, longer) == 75
    store.keep_tail(cache)  # of two, the longer
    read(store, cache, model, text(5, 10))
    assert read(store, cache, model, np.concatenate([longer, text(4, 60)])) == 85
    assert read(store, cache, model, np.concatenate([document, text(6, 3)])) == 75
    # Not of a prompt that is another before, in, or too short behind.
    read(store, cache, model, text(5, 10))
    assert read(store, cache, model, np.concatenate([text(7, 64), document[64:], [1]])) == 0
    assert read(store, cache, model, document) == 64
    read(store, cache, model, text(5, 10))
    assert read(store, cache, model, np.concatenate([document[:74], text(8, 3)])) == 64


def test_the_end_of_a_first_chunk(golden_model: Callable[[str], Llama4]) -> None:
    model, document = golden_model("maverick"), text(1, 20)
    store, cache = PrefixStore(CHUNK, 10**9), PromptCache(model.make_cache())
    read(store, cache, model, document)
    store.keep_tail(cache)
    read(store, cache, model, text(2, 50))
    assert read(store, cache, model, np.concatenate([document, text(3, 1)])) == 20
    for length in (32, 64):  # at a border there is no tail: blocks do
        whole = text(4, length)
        read(store, cache, model, whole)
        before = store.nbytes
        store.keep_tail(cache)
        assert store.nbytes == before


def test_at_least_one_token_is_left_to_feed(golden_model: Callable[[str], Llama4]) -> None:
    model = golden_model("scout")
    store, cache = PrefixStore(CHUNK, 10**9), PromptCache(model.make_cache())
    read(store, cache, model, text(1, 64))
    assert read(store, cache, model, text(1, 64)) == 63
    read(store, cache, model, text(2, 5))
    assert read(store, cache, model, text(1, 64)) == 32


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12), st.booleans()), max_size=40),
    st.integers(0, 30),
)
def test_least_recently_used(steps: list[tuple[int, int, bool]], budget: int) -> None:
    """Against a plain list, latest last."""
    kept: LeastRecentlyUsed[int, int] = LeastRecentlyUsed(budget)
    expected: list[tuple[int, int]] = []
    for key, nbytes, is_put in steps:
        found = next((entry for entry in expected if entry[0] == key), None)
        if found:
            expected.remove(found)
        if is_put:
            kept.put(key, nbytes, nbytes)
            if nbytes <= budget:
                expected.append((key, nbytes))
            while sum(size for _, size in expected) > budget:
                expected.pop(0)
        else:
            assert kept.get(key) == (found[1] if found else None)
            expected += [found] if found else []
        assert kept.nbytes == sum(size for _, size in expected) <= budget
