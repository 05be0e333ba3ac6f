"""Caches of both kinds: what they hold, where they cut, how far they can go back."""

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_llama4.cache.chunked import ChunkedKVCache
from mlx_llama4.cache.kv import KVCache
from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.config import parse_config
from mlx_llama4.errors import PromptError
from mlx_llama4.generation.prefill import prefill
from mlx_llama4.memory import cache_bytes, dequantized_bytes
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.model.rope import TextRope
from mlx_llama4.prompt.image import RememberedImage
from mlx_llama4.prompt.prompt import PlacedImage, Prompt
from mlx_llama4.quantization import KVQuantization
from tests import tiny
from tests.golden import cases
from tests.golden.logits import goldens
from tests.tolerance import assert_same_logits

CHUNK = 4


def tokens(start: int, stop: int) -> mx.array:
    """Keys [1, 1, stop - start, 2] that tell which token each is."""
    return mx.broadcast_to(mx.arange(start, stop)[None, None, :, None], (1, 1, stop - start, 2))


def held(array: mx.array) -> list[int]:
    return np.array(array)[0, 0, :, 0].astype(int).tolist()


def feed(cache: KVCache, start: int, stop: int, attention_step: int = 99) -> list[list[int]]:
    """Give tokens start … stop - 1 to the cache; what each range of them sees."""
    new = tokens(start, stop)
    seen = []
    for first, last, keys, values in cache.extend(new, new, attention_step):
        assert 1 <= last - first <= attention_step
        assert held(keys) == held(values)
        assert held(keys)[first - last :] == list(range(start + first, start + last))
        seen.append(held(keys))
    return seen


def test_chunked_cache_as_its_docstring_has_it() -> None:
    cache = ChunkedKVCache(CHUNK)
    assert feed(cache, 0, 4) == [[0, 1, 2, 3]]
    assert feed(cache, 4, 6) == [[4, 5]]
    assert (cache.offset, cache.next_position, cache.chunk_start) == (6, 2, 4)
    assert feed(cache, 6, 15) == [[4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14]]
    assert (cache.offset, cache.next_position, cache.chunk_start) == (15, 3, 12)


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    attention_step=st.integers(1, 9),
    chunk=st.integers(1, 7) | st.none(),
)
def test_every_token_sees_its_chunk_up_to_itself(
    lengths: list[int], attention_step: int, chunk: int | None
) -> None:
    """With a causal mask aligned at the end, whatever way the tokens arrive."""
    chunked, plain, start = ChunkedKVCache(chunk), KVCache(), 0
    for length in lengths:
        stop = start + length
        assert chunked.next_position == (start % chunk if chunk else start)
        for cache, size in ((chunked, chunk or 10**9), (plain, 10**9)):
            token = start
            for seen in feed(cache, start, stop, attention_step):
                # Everything since the last token's border, itself last.
                assert seen == list(range(seen[-1] // size * size, seen[-1] + 1))
                assert token // size == seen[-1] // size
                token = seen[-1] + 1
            assert token == cache.offset == stop
        start = stop


def test_buffers_are_written_in_place() -> None:
    """A decode step must not copy the whole cache."""
    for cache in (KVCache(), ChunkedKVCache(300)):
        cache.reserve(40)
        addresses = set()
        for position in range(40):
            feed(cache, position, position + 1)
            mx.eval(cache.arrays)
            addresses.add(np.asarray(cache.buffers["keys"].array).__array_interface__["data"][0])
        assert len(addresses) == 1


def test_rewind() -> None:
    cache = KVCache()
    feed(cache, 0, 6)
    cache.rewind(2)
    new = tokens(10, 11)
    assert held(next(cache.extend(new, new, 9))[2]) == [0, 1, 10]
    with pytest.raises(PromptError, match="cannot go back to 5"):
        cache.rewind(5)


def test_rewind_inside_a_chunk_only() -> None:
    cache = ChunkedKVCache(CHUNK)
    feed(cache, 0, 4)
    cache.rewind(2)  # the chunk is complete, but still held
    assert feed(cache, 2, 4) == [[0, 1, 2, 3]]
    feed(cache, 4, 5)
    assert [cache.rewind_point(position) for position in range(7)] == [0, 0, 0, 0, 4, 5, 5]
    with pytest.raises(PromptError, match="holds tokens 4 to 5 cannot go back to 3"):
        cache.rewind(3)
    cache.rewind(4)
    assert feed(cache, 4, 6) == [[4, 5]]
    feed(cache, 6, 10)
    cache.rewind(4)  # a border, of which nothing is held any more and nothing needed
    assert feed(cache, 4, 6) == [[4, 5]]


def test_a_chunk_that_was_passed_over_is_not_held() -> None:
    """Nor may an interruption make it look so: there is none of it in the buffers."""
    cache = ChunkedKVCache(CHUNK)
    new = tokens(0, 10)
    next(steps := cache.extend(new, new, 99))
    assert (cache.first_held, cache.offset) == (4, 4)
    assert cache.rewind_point(3) == 0
    list(steps)
    assert (cache.first_held, cache.offset) == (8, 10)


def test_copies_go_their_own_ways() -> None:
    for cache in (KVCache(), ChunkedKVCache(CHUNK)):
        feed(cache, 0, 2)
        copied = cache.copy()
        new = tokens(20, 21)
        assert held(next(copied.extend(new, new, 9))[2]) == [0, 1, 20]
        assert feed(cache, 2, 4) == [[0, 1, 2, 3]]
        assert (cache.offset, copied.offset) == (4, 3)
        assert held(copied.rows(0, 3)["keys"]) == [0, 1, 20]


@pytest.mark.parametrize("name", ["scout", "maverick"])
@pytest.mark.parametrize("back_to", [96, 97, 110, 127, 128])
def test_logits_after_rewinding(
    golden_model: Callable[[str], Llama4], name: str, back_to: int
) -> None:
    """Up to the border before; 128 is the end of a chunk that nothing has overwritten yet."""
    model, ids = golden_model(name), mx.array(cases.text_ids(150))
    cache = model.make_cache()
    model(ids[:, :128], cache)
    for layer in cache:
        layer.rewind(back_to)
    logits = model(ids[:, back_to:], cache)[0]
    assert_same_logits(logits, goldens(name)["text 150"][back_to:], "text")


def filled(model: Llama4, ids: np.ndarray) -> PromptCache:
    cache = PromptCache(model.make_cache())
    model(mx.array(ids[None]), cache.layers)
    cache.record(ids, [])
    return cache


def test_prompt_cache_keeps_the_common_prefix(golden_model: Callable[[str], Llama4]) -> None:
    ids = cases.text_ids(60)[0].astype(np.int32)
    cache = filled(golden_model("scout"), ids[:50])
    other = ids.copy()
    other[45] += 1
    assert cache.common_prefix(ids, []) == 50
    assert cache.common_prefix(other, []) == 45
    assert cache.rewind(45) == 45
    assert [layer.offset for layer in cache.layers] == [45] * tiny.LAYERS
    assert cache.rewind(44) == 44
    assert cache.rewind(20) == 0  # over the border at 32
    assert len(cache.ids) == 0


def test_prompt_cache_knows_images_apart() -> None:
    ids = np.arange(30, dtype=np.int32)
    one, other = (
        [PlacedImage(RememberedImage(digest, 1, (1, 1), (9, 9)), 4, 8)] for digest in "ab"
    )
    cache = PromptCache([KVCache()])
    feed(cache.layers[0], 0, 30)
    cache.record(ids, one)
    assert cache.common_prefix(ids, one) == 30
    assert cache.common_prefix(ids, other) == 4
    assert cache.rewind(4) == 4 and cache.images == ()


def test_prompt_cache_of_an_interrupted_step(golden_model: Callable[[str], Llama4]) -> None:
    """All layers go back to where each can: inside the chunk, or the border below."""
    model, ids = golden_model("scout"), cases.text_ids(70)[0]
    for behind, expected in ((69, 69), (65, 65), (63, 32)):
        cache = PromptCache(model.make_cache())
        model(mx.array(ids[None]), cache.layers)
        cache.layers[3].rewind(behind)  # a global layer
        cache.record(ids, [])
        assert {layer.offset for layer in cache.layers} == {len(cache.ids)} == {expected}


def test_prompt_cache_of_a_token_that_came_too_late(golden_model: Callable[[str], Llama4]) -> None:
    model, ids = golden_model("scout"), cases.text_ids(70)[0]
    for told in (69, 65, 64, 63):
        cache = PromptCache(model.make_cache())
        model(mx.array(ids[None, : told + 1]), cache.layers)
        cache.record(ids[:told], [])
        assert {layer.offset for layer in cache.layers} == {len(cache.ids)} == {told}


@pytest.mark.parametrize("length", [1, 31, 32, 33, 256, 257, 600])
@pytest.mark.parametrize("chunk", [32, None])
def test_bytes_are_as_predicted(length: int, chunk: int | None) -> None:
    config = parse_config(tiny.config("scout", attention_chunk_size=chunk))
    model = Llama4(config)
    cache = model.make_cache()
    model(mx.array(tiny.text_ids(length, 0)), cache)
    assert sum(layer.nbytes for layer in cache) == cache_bytes(config.text, length, 4).total


@pytest.mark.parametrize("quantization", [None, KVQuantization(8, 64)])
def test_room_is_given_back(quantization: KVQuantization | None) -> None:
    """When a long conversation gives way to a short one; not when an answer is taken back."""
    config = parse_config(tiny.config("scout", head_dim=64, attention_chunk_size=1024))
    model, ids = Llama4(config), tiny.text_ids(3000, 0)
    cache = PromptCache(model.make_cache(quantization))
    model(mx.array(ids), cache.layers)
    cache.record(ids[0], [])
    whole = cache.nbytes
    assert whole == cache_bytes(config.text, 3000, 4, quantization).total
    assert (cache.rewind(2900), cache.nbytes) == (2900, whole)
    assert (cache.rewind(1100), cache.nbytes) == (
        1024,
        cache_bytes(config.text, 1024, 4, quantization).total,
    )
    assert (cache.rewind(5), cache.nbytes) == (0, 0)
    model(mx.array(ids[:, :300]), cache.layers)
    cache.record(ids[0, :300], [])
    logits = model(mx.array(ids[:, 300:301]), cache.layers)[0, -1]
    fresh = model(mx.array(ids[:, :301]), model.make_cache(quantization))[0, -1]
    assert mx.abs(logits - fresh).max() < 1e-4


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("length", "after"), [(1, 0), (300, 0), (300, 300), (300, 299)])
def test_packed_bytes_are_as_predicted(bits: int, length: int, after: int) -> None:
    config = parse_config(tiny.config("scout", head_dim=64))
    model, quantization = Llama4(config), KVQuantization(bits, 64, after)
    cache = model.make_cache(quantization)
    for start in range(0, length, 100):
        model(mx.array(tiny.text_ids(length, 0)[:, start : start + 100]), cache)
        mx.eval([array for layer in cache for array in layer.arrays])
    expected = cache_bytes(config.text, length, 4, quantization)
    assert sum(layer.nbytes for layer in cache) == expected.total
    packs = length > after
    assert (expected.total < cache_bytes(config.text, length, 4).total) == packs


def test_scout_s_bytes_a_token() -> None:
    """12 global layers of 8 key/value heads, 128 wide; figures of `findings`, bf16."""
    text = parse_config(
        tiny.config(
            "scout",
            num_hidden_layers=48,
            num_attention_heads=40,
            num_key_value_heads=8,
            head_dim=128,
            attention_chunk_size=8192,
        )
    ).text
    tokens = 2**20
    for quantization, expected in (
        (None, 12 * 2 * 8 * 128 * 2),
        (KVQuantization(8), 26_112),
        (KVQuantization(4), 13_824),
    ):
        found = cache_bytes(text, tokens, 2, quantization)
        assert found.global_layers == tokens * expected
        assert found.chunked_layers == 36 * 8192 * 4096


@pytest.mark.slow
def test_chunked_memory_stays_flat_over_a_thousand_chunks() -> None:
    config = parse_config(tiny.config("maverick", attention_chunk_size=8, num_hidden_layers=4))
    model, cache, seen = Llama4(config), Llama4(config).make_cache(), []
    prompt = Prompt(tiny.text_ids(8000, 0)[0].astype(np.int32))

    def note(done: int, total: int) -> None:
        chunked = [layer for layer in cache if isinstance(layer, ChunkedKVCache)]
        seen.append((done, sum(layer.nbytes for layer in chunked), mx.get_active_memory()))

    mx.eval(prefill(model, prompt, cache, span=400, on_progress=note))
    expected = cache_bytes(config.text, 8000, 4)
    assert (
        {nbytes for _, nbytes, _ in seen} == {expected.chunked_layers} == {3 * 8 * 2 * 2 * 16 * 4}
    )
    # What grows is the one global layer, by what the formula says of it.
    (first, _, before), (last, _, after) = seen[2], seen[-1]
    growth = sum(
        sign * cache_bytes(config.text, done, 4).total for done, sign in ((last, 1), (first, -1))
    )
    assert after - before == pytest.approx(growth, rel=0.01)


def test_a_prefill_step_unpacks_one_layer_at_a_time() -> None:
    """What it takes above plain caches is one layer's keys and values, not those of all eight."""
    config = parse_config(tiny.config("scout", head_dim=64, no_rope_layers=[0] * 8))
    model, held, step = Llama4(config), 4032, tiny.text_ids(64, 0)
    rows = {"keys": mx.ones((1, 2, held, 64)), "values": mx.ones((1, 2, held, 64))}
    peaks = []
    for quantization in (None, KVQuantization(8, 64)):
        cache = model.make_cache(quantization)
        for layer in cache:
            layer.reserve(held + 64)
            layer.append(rows)
        # Packed, or brought to the room reserved for it, by one token; which then goes again.
        mx.eval(model(mx.array([[1]]), cache), [array for c in cache for array in c.arrays])
        for layer in cache:
            layer.rewind(held)
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(model(mx.array(step), cache, last_only=True))
        peaks.append(mx.get_peak_memory() - before)
    plain, packed = peaks
    one_layer = dequantized_bytes(config.text, held + 64, 4, KVQuantization(8, 64))
    assert one_layer == 2 * 2 * 4096 * 64 * 4
    assert packed - plain < 2 * one_layer


def test_positions_inside_the_chunk_are_exact_at_ten_million_tokens() -> None:
    """q·k by positions within the chunk is what small positions give; absolute ones lose it."""
    rope = TextRope(parse_config(tiny.config("maverick", head_dim=128)).text)
    queries, keys = mx.random.normal((2, 1, 64, 1, 128), key=mx.random.key(0))

    def scores(offset: int, distance: int) -> np.ndarray:
        return np.array((rope(queries, offset + distance) * rope(keys, offset)).sum(-1))

    cache = ChunkedKVCache(8192)
    cache.offset = 10_000_000 // 8192 * 8192 + 1000
    inside, absolute = cache.next_position, cache.offset
    for distance in (1, 100, 5000):
        assert np.abs(scores(inside, distance) - scores(0, distance)).max() < 0.02
    assert np.abs(scores(absolute, 5000) - scores(0, 5000)).max() > 0.5
