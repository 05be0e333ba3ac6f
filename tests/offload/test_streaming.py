"""A model whose experts are read from the disk computes the very same as one in memory."""

import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.convert.recipes import Recipe, Rule
from mlx_llama4.convert.run import convert
from mlx_llama4.generation.generate import Statistics, Wordless, stream_generate
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.offload import expert_cache
from mlx_llama4.opening import load_model
from mlx_llama4.prompt.prompt import Prompt
from mlx_llama4.quantization import Quantization
from tests import streamed, tiny
from tests.golden.cases import MODELS, text_ids
from tests.proofs import scaled
from tests.streamed import ALL, HALF, ONE, ONE_A_LAYER, SOME, load_streamed

PACKINGS = {
    "scout": Quantization(32, 4),
    "maverick": Quantization(32, 4, "mxfp4"),
    "two_experts": Quantization(64, 2),
}
Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Name of a golden model → its folder, packed as above."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = streamed.folder(tmp_path_factory.mktemp(name), name, PACKINGS[name])
        return made[name]

    return make


def logits(model: Llama4, ids: np.ndarray, prefilled: int) -> np.ndarray:
    """A prefill, and then one by one."""
    cache = model.make_cache()
    parts = [model(mx.array(ids[:, :prefilled]), cache)]
    for i in range(prefilled, ids.shape[1]):
        parts.append(model(mx.array(ids[:, i : i + 1]), cache))
    return np.array(mx.concatenate(parts, axis=1))


@pytest.mark.parametrize("name", PACKINGS)
@pytest.mark.parametrize("size", [ONE, ONE_A_LAYER, SOME, HALF, ALL])
def test_logits_are_those_of_the_resident_model(folders: Folders, name: str, size: str) -> None:
    folder, ids = folders(name), text_ids(150)
    expected = logits(load_model(folder, mx.float32), ids, 130)
    assert np.array_equal(logits(load_streamed(folder, size), ids, 130), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_experts_that_are_not_packed(tmp_path: Path, dtype: str) -> None:
    folder, ids = streamed.folder(tmp_path, "maverick", None, dtype), text_ids(100)
    expected = logits(load_model(folder, mx.float32), ids, 90)
    assert np.array_equal(logits(load_streamed(folder, SOME), ids, 90), expected)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_activations_of_16_bits(folders: Folders, dtype: mx.Dtype) -> None:
    """Scales are brought to their type: from bfloat16, which the folder has."""
    folder, ids = folders("maverick"), text_ids(20)
    resident = load_model(folder, dtype)
    model = load_model(folder, dtype, streamed.ExpertStreaming(streamed.budget(folder, SOME)))
    assert mx.array_equal(model(mx.array(ids)), resident(mx.array(ids)))


def test_layers_packed_otherwise_than_others(tmp_path: Path) -> None:
    case = MODELS["scout"]
    source = tiny.write_checkpoint(tmp_path / "source", case.config, case.weights(), "BF16")
    rule = Rule("*layers.[0-3].feed_forward.experts*", Quantization(32, 8))
    recipe = Recipe("bfloat16", Quantization(32, 3), rules=(rule,))
    convert(source, tmp_path / "mlx", recipe)
    assert len({need.packing for need in streamed.needs(tmp_path / "mlx")}) == 2
    ids = text_ids(100)
    expected = logits(load_model(tmp_path / "mlx", mx.float32), ids, 90)
    for size in (ONE_A_LAYER, SOME):
        assert np.array_equal(logits(load_streamed(tmp_path / "mlx", size), ids, 90), expected)


def test_past_the_page_cache(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system can, and where it cannot. No tensor begins at a whole block."""
    ids, opened = text_ids(60), os.open
    expected = logits(load_model(folders("scout"), mx.float32), ids, 50)
    model = load_streamed(folders("scout"), SOME, page_cache=False)
    assert np.array_equal(logits(model, ids, 50), expected)

    def refuse(path: Path, flags: int) -> int:
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    model = load_streamed(folders("scout"), SOME, page_cache=False)
    assert np.array_equal(logits(model, ids, 50), expected)


def test_pictures(folders: Folders) -> None:
    grids = [(1, 1), (1, 2)]
    resident, model = load_model(folders("scout"), mx.float32), load_streamed(folders("scout"), ONE)
    features = resident.image_features(tiny.pixels(grids))
    embeddings = resident.embed(tiny.image_ids(grids), features)
    assert mx.array_equal(model(embeddings), resident(embeddings))


def test_several_rows(folders: Folders) -> None:
    """Each step of a batch needs several experts of a layer."""
    ids = np.concatenate([text_ids(40), text_ids(40)[:, ::-1], text_ids(41)[:, 1:]])
    expected = logits(load_model(folders("scout"), mx.float32), ids, 30)
    for size in (ONE, ONE_A_LAYER, HALF):
        assert np.array_equal(logits(load_streamed(folders("scout"), size), ids, 30), expected)


def test_nothing_is_overwritten_before_it_is_computed(folders: Folders) -> None:
    """Outputs that nobody has looked at yet, of calls that came before."""
    resident = load_model(folders("scout"), mx.float32)
    model = load_streamed(folders("scout"), ONE)
    prompts = [mx.array(text_ids(length)) for length in (3, 70, 1, 100)]
    found = [model(ids) for ids in prompts]
    for ids, one in zip(prompts, found, strict=True):
        assert mx.array_equal(one, resident(ids))


def test_what_mlx_keeps_for_reuse(folders: Folders) -> None:
    """As much as the living models are to have together, whichever goes first."""
    gc.collect()
    before = mx.set_cache_limit(0)
    mx.set_cache_limit(before)

    def limit() -> int:
        found = mx.set_cache_limit(0)
        mx.set_cache_limit(found)
        return found

    first = load_streamed(folders("scout"), HALF)
    one = limit()
    second = load_streamed(folders("scout"), HALF)
    assert limit() == 2 * one
    del first
    gc.collect()
    assert limit() == one
    del second
    gc.collect()
    assert limit() == before


def test_lanes_are_made_once(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    bank = expert_cache.SlotBank
    monkeypatch.setattr(expert_cache, "SlotBank", lambda *given: made.append(given) or bank(*given))
    load_streamed(folders("scout"), HALF)
    assert len(made) == 1


def test_a_rewound_cache(folders: Folders) -> None:
    resident, model = (
        load_model(folders("scout"), mx.float32),
        load_streamed(folders("scout"), SOME),
    )
    expected, found = [], []
    for one, results in ((resident, expected), (model, found)):
        cache = PromptCache(one.make_cache())
        for ids in (text_ids(100)[0], np.concatenate([text_ids(100)[0, :45], text_ids(60)[0]])):
            held = cache.rewind(min(45, len(cache.ids)))
            results.append(np.array(one(mx.array(ids[None, held:]), cache.layers)))
            cache.record(ids, [])
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


def test_one_read_back_a_layer(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other evaluation that waits."""
    model = load_streamed(folders("maverick"), SOME)
    cache = model.make_cache()
    mx.eval(model(mx.array(text_ids(40)), cache))
    waits = []
    monkeypatch.setattr(mx, "eval", lambda *arrays: waits.append("eval"))
    monkeypatch.setattr(mx, "synchronize", lambda *arrays: waits.append("synchronize"))
    before = model.expert_statistics.read_backs
    for _ in range(5):
        model(mx.array([[7]]), cache)
    assert model.expert_statistics.read_backs - before == 5 * 4
    assert not waits


def test_no_read_back_once_all_experts_are_held(folders: Folders) -> None:
    """Inside mx.compile's trace, any evaluation raises."""
    model = load_streamed(folders("maverick"), ALL)
    cache = model.make_cache()
    mx.eval(model(mx.array(text_ids(150)), cache))  # all are needed
    assert all(layer.holds_all for layer in model.expert_cache.layers.values())
    before = model.expert_statistics.read_backs
    mx.compile(lambda token: model(token, cache))(mx.array([[5]]))
    assert model.expert_statistics.read_backs == before


def test_statistics(folders: Folders) -> None:
    folder = folders("maverick")
    model, ids, statistics = load_streamed(folder, HALF), text_ids(40), Statistics()
    prompt = Prompt(ids[0].astype(np.int32))
    settings = GenerationSettings(max_tokens=9)
    steps = stream_generate(model, Wordless(), prompt, settings, statistics=statistics)
    assert len(list(steps)) == 9
    prefill, decode = statistics.prefill_experts, statistics.decode_experts
    assert prefill.read_backs == 4
    assert decode.read_backs == decode.hits + decode.misses == 8 * 4
    stored = streamed.stored_bytes(folder) // (4 * 8)
    assert decode.bytes_read == decode.misses * stored
    assert prefill.bytes_read == prefill.misses * stored
    assert decode.hits > 0


def test_nothing_is_read_for_a_token_after_the_last(folders: Folders) -> None:
    """Each is given out before the next is computed, so one that ends the answer costs no read."""
    model, prompt = load_streamed(folders("maverick"), SOME), Prompt(text_ids(40)[0])
    steps = stream_generate(model, Wordless(), prompt, GenerationSettings(max_tokens=9))
    next(steps)
    assert model.expert_statistics.read_backs == 4
    next(steps)
    assert model.expert_statistics.read_backs == 8


def test_a_long_step_reads_each_expert_once(folders: Folders) -> None:
    model = load_streamed(folders("maverick"), ONE_A_LAYER)
    mx.eval(model(mx.array(text_ids(150))))
    assert model.expert_statistics.misses == 4 * 8


@pytest.mark.slow
@pytest.mark.prove("streaming")
@pytest.mark.parametrize("name", ["scout", "maverick"])
@pytest.mark.parametrize("size", [ONE, ONE_A_LAYER, SOME])
def test_thousands_of_tokens(folders: Folders, name: str, size: str) -> None:
    """Prefills in odd steps, tokens one by one, pictures, and going back."""
    resident, model = load_model(folders(name), mx.float32), load_streamed(folders(name), size)
    random = np.random.RandomState(0)
    caches = [PromptCache(one.make_cache()) for one in (resident, model)]
    ids = np.zeros(0, np.int32)
    tokens = 0
    while tokens < scaled(4000, long=40_000):
        keep = random.randint(len(ids) + 1) if random.rand() < 0.2 else len(ids)
        keep = 0 if len(ids) > 1500 else keep
        new = random.randint(0, 300, random.choice([1, 1, 1, 2, 33, 150])).astype(np.int32)
        ids = np.concatenate([ids[:keep], new])
        results = []
        for one, cache in zip((resident, model), caches, strict=True):
            held = cache.rewind(min(keep, len(cache.ids)))
            assert held < len(ids)
            results.append(np.array(one(mx.array(ids[None, held:]), cache.layers)))
            cache.record(ids, [])
        assert np.array_equal(*results)
        tokens += results[0].shape[1]
    grids = [(1, 1), (1, 2)]
    features = resident.image_features(tiny.pixels(grids))
    embeddings = resident.embed(tiny.image_ids(grids), features)
    assert mx.array_equal(model(embeddings), resident(embeddings))
    print(f"\n{name}, {size}: {tokens} tokens, the same logits")
