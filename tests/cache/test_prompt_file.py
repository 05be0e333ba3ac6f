"""Prompt caches on disk: how large they are, what they hold, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.cache.kv import KVCache
from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.cache.prompt_file import PromptFile, save_prompt_file
from mlx_llama4.checkpoint.identity import Identity
from mlx_llama4.checkpoint.safetensors import read_header
from mlx_llama4.config import parse_config
from mlx_llama4.errors import CheckpointError, PromptError
from mlx_llama4.files.safetensors_file import write_safetensors
from mlx_llama4.generation.image_features import ImageFeatureCache
from mlx_llama4.generation.prefill import prefill
from mlx_llama4.memory import prompt_file_bytes
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.opening import open_folder
from mlx_llama4.prompt.prompt import Prompt, place_images
from mlx_llama4.quantization import KVQuantization
from tests import tiny
from tests.cache.filled import IDENTITY, filled, text
from tests.golden import cases
from tests.golden.logits import goldens
from tests.prompts import image_prompt
from tests.tolerance import assert_same_logits

CHUNK = 32


def payload(path: Path) -> int:
    """Bytes of all tensors but the conversation."""
    return sum(tensor.nbytes for tensor in read_header(path) if tensor.name != "conversation")


def loaded(path: Path, model: Llama4, quantization: KVQuantization | None = None) -> PromptCache:
    file = PromptFile(path)
    file.check(IDENTITY, quantization)
    return file.load(model.make_cache(quantization or file.quantization), mx.float32).cache


@pytest.mark.parametrize("length", [1, 31, 32, 33, 96, 100])
@pytest.mark.parametrize("small", [False, True])
def test_bytes_are_the_formula_s(
    golden_model: Callable[[str], Llama4], tmp_path: Path, length: int, small: bool
) -> None:
    model, path = golden_model("scout"), tmp_path / "a.safetensors"
    nbytes = save_prompt_file(path, filled(model, text(length)), IDENTITY, small=small)
    assert payload(path) == prompt_file_bytes(model.config.text, length, 4, small=small)
    assert path.stat().st_size == nbytes
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("quantization", [KVQuantization(8, 32), KVQuantization(4, 32)])
def test_packed_bytes_are_the_formula_s(tmp_path: Path, quantization: KVQuantization) -> None:
    model, path = Llama4(parse_config(tiny.config("scout", head_dim=32))), tmp_path / "a"
    cache = filled(model, text(70), quantization)
    save_prompt_file(path, cache, IDENTITY)
    assert payload(path) == prompt_file_bytes(model.config.text, 70, 4, quantization)
    again = loaded(path, model)
    for layer, other in zip(cache.layers, again.layers, strict=True):
        rows, others = layer.rows(64, 70), other.rows(64, 70)
        assert rows.keys() == others.keys()
        assert all(mx.array_equal(rows[name], others[name]) for name in rows)


@pytest.mark.parametrize("chunks", [1, 4, 16])
def test_small_files_beside_mlx_lm_s(tmp_path: Path, chunks: int) -> None:
    """Theirs hold a chunk of every chunked layer, three of four, beside all of the global ones'."""
    from mlx_lm.models.cache import ChunkedKVCache, save_prompt_cache
    from mlx_lm.models.cache import KVCache as PeerKVCache

    config = parse_config(tiny.config("scout", head_dim=64))
    length, model = chunks * CHUNK, Llama4(config)
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    cache = filled(model, text(length))
    save_prompt_file(ours, cache, IDENTITY, small=True)
    peers = []
    for layer in config.text.layers:
        peer = ChunkedKVCache(CHUNK) if layer.attention == "chunked" else PeerKVCache()
        for start in range(0, length, CHUNK):
            if layer.attention == "chunked":
                peer.maybe_trim_front()
            rows = mx.zeros((1, config.text.num_key_value_heads, CHUNK, config.text.head_dim))
            peer.update_and_fetch(rows + start, rows)
        peers.append(peer)
    save_prompt_cache(str(theirs), peers)
    # T of T + 3 C, as chunked layers are three of four.
    share = length / (length + 3 * CHUNK)
    assert ours.stat().st_size <= 1.05 * share * theirs.stat().st_size


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("case", ["16 tiles", "two images"])
def test_images_are_not_encoded_again(
    golden_model: Callable[[str], Llama4],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    small: bool,
) -> None:
    """Their features are in the file, as far as anything may ask for them again."""
    model, prompt = golden_model("scout"), image_prompt(cases.IMAGES[case])
    images, features = place_images(prompt, model.config), ImageFeatureCache()
    cache = PromptCache(model.make_cache())
    mx.eval(prefill(model, prompt, cache.layers, features=features))
    cache.record(prompt.ids, images)
    held = cache.rewind(len(prompt.ids) - 3)
    path = tmp_path / "a.safetensors"
    save_prompt_file(
        path,
        cache,
        IDENTITY,
        features_of=lambda image: features.get(model, image),
        small=small,
    )
    last = held // CHUNK * CHUNK if small else 0
    tokens = sum(4 * i.image.num_tiles for i in images if i.stop > last)
    assert payload(path) == prompt_file_bytes(
        model.config.text, held, 4, small=small, feature_tokens=tokens
    )
    found = PromptFile(path).load(model.make_cache(), mx.float32)
    assert [i.image.digest for i in found.cache.images] == [
        i.image.digest for i in images if i.start < len(found.cache.ids)
    ]
    monkeypatch.setattr(Llama4, "image_features", None)
    kept = ImageFeatureCache()
    for digest, array in found.features.items():
        kept.put(digest, array)
    if not small:
        found.cache.rewind(max(held - 40, 0))
    logits = prefill(model, prompt, found.cache.layers, features=kept)
    assert_same_logits(logits, goldens("scout")[case][-1:], "images")


def test_pictures_that_a_small_file_lacks_are_asked_for(
    golden_model: Callable[[str], Llama4], tmp_path: Path
) -> None:
    model, prompt = golden_model("scout"), image_prompt([(1, 1), (4, 4)])
    images, features = place_images(prompt, model.config), ImageFeatureCache()
    cache = PromptCache(model.make_cache())
    mx.eval(prefill(model, prompt, cache.layers, features=features))
    cache.record(prompt.ids, images)
    path = tmp_path / "a"
    known = lambda image: features.get(model, image)  # noqa: E731
    save_prompt_file(path, cache, IDENTITY, features_of=known, small=True)
    found = PromptFile(path).load(model.make_cache(), mx.float32)
    remembered = Prompt(prompt.ids, tuple(placed.image for placed in PromptFile(path)._images))
    found.cache.rewind(0)
    with pytest.raises(PromptError, match="needs the pictures again"):
        prefill(model, remembered, found.cache.layers)


def test_loading_holds_one_layer_twice(tmp_path: Path) -> None:
    """What is read, and the cache that it goes into."""
    cache = PromptCache([KVCache() for _ in range(8)])
    for layer in cache.layers:
        layer.append({name: mx.random.normal((1, 2, 4000, 64)) for name in ("keys", "values")})
    mx.eval(cache.arrays)
    cache.record(np.zeros(4000, np.int32), [])
    save_prompt_file(tmp_path / "a", cache, IDENTITY)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    found = PromptFile(tmp_path / "a").load([KVCache() for _ in range(8)], mx.float32)
    mx.eval(found.cache.arrays)
    assert mx.get_peak_memory() - before < 1.3 * found.cache.nbytes


def test_conversation_and_types_come_back(
    golden_model: Callable[[str], Llama4], tmp_path: Path
) -> None:
    model, path = golden_model("maverick"), tmp_path / "a"
    image = image_prompt([(1, 2)]).images[0]
    said = {"messages": [{"content": [{"type": "image", "image": image}, "ä 🦙"]}], "n": 3}
    save_prompt_file(path, filled(model, text(40)), IDENTITY, conversation=said)
    found = PromptFile(path).load(model.make_cache(), mx.bfloat16)
    content = found.conversation["messages"][0]["content"]
    assert (content[1], found.conversation["n"]) == ("ä 🦙", 3)
    again = content[0]["image"]
    assert (again.digest, again.grid, again.num_tiles) == (image.digest, (1, 2), 3)
    assert {array.dtype for array in found.cache.arrays} == {mx.bfloat16}


def test_files_are_what_mlx_reads(tmp_path: Path) -> None:
    arrays = {
        name: mx.arange(12).reshape(3, 4).astype(dtype)[:, 1:]
        for name, dtype in {
            "f": mx.float32, "h": mx.float16, "b": mx.bfloat16, "i": mx.int32, "u": mx.uint32,
            "é": mx.uint8,
        }.items()
    }  # fmt: skip
    write_safetensors(tmp_path / "a.safetensors", arrays, {"key": 'a "value"'})
    found, metadata = mx.load(str(tmp_path / "a.safetensors"), return_metadata=True)
    assert metadata.pop("checksums").count(" ") == len(arrays)
    assert metadata == {"key": 'a "value"'}
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert mx.array_equal(found[name], array)


def test_identity_tells_models_apart(
    golden_folder: Callable[[str], Path], demo_folder: Path, tmp_path: Path
) -> None:
    import shutil

    first = open_folder(demo_folder).identity
    folder = tmp_path / "copy"
    shutil.copytree(demo_folder, folder)
    assert open_folder(folder).identity == Identity("copy", first.model, first.tokenizer)
    weights = next(folder.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    for tensor in read_header(weights):
        data[tensor.offset] ^= 1  # every tensor a little other, as after fine-tuning
    weights.write_bytes(data)
    assert open_folder(folder).identity.model != first.model
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert open_folder(folder).identity.tokenizer != first.tokenizer
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        open_folder(folder)
