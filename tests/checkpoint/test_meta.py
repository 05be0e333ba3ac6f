"""Meta's layout: the same model from it as from Hugging Face's, whatever the number of ranks."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.checkpoint.matching import Matching, match_tensors
from mlx_llama4.checkpoint.meta.layout import open_meta
from mlx_llama4.checkpoint.meta.params import json_files
from mlx_llama4.checkpoint.safetensors import Checkpoint, open_checkpoint
from mlx_llama4.checkpoint.sources import num_rows, row_bytes
from mlx_llama4.config import load_generation_config, parse_config
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.prompt.image import ImageTiler
from tests import meta_layout, tiny
from tests.checkpoint.meta_folders import (
    PREFIX,
    SMALL,
    float8_checkpoint,
    opened,
    small,
    with_params,
)
from tests.golden import cases
from tests.golden.logits import goldens
from tests.tolerance import assert_same_logits

ALL = ("scout", "maverick", "guard")


def read(
    checkpoint: Checkpoint, matching: Matching, step: int | None = None
) -> dict[str, mx.array]:
    """Every model tensor, read `step` rows at a time."""
    arrays: dict[str, list[mx.array]] = {}
    for source in dict.fromkeys(matching.sources.values()):
        rows = num_rows(source)
        for start in range(0, rows, step or rows):
            stop = min(start + (step or rows), rows)
            data = source.read(checkpoint, start, stop, "float32")
            for name, part in zip(source.targets, source.decode(data, start, stop), strict=True):
                arrays.setdefault(name, []).append(part)
    return {name: mx.concatenate(parts) for name, parts in arrays.items()}


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F16"])
@pytest.mark.parametrize(("ranks", "step"), [(1, None), (2, 3), (4, 7)])
@pytest.mark.parametrize("name", ALL)
def test_same_tensors_as_hugging_face_s(
    tmp_path: Path, name: str, ranks: int, step: int | None, dtype: str
) -> None:
    config, weights = cases.MODELS[name].config, cases.MODELS[name].weights()
    theirs = open_checkpoint(tiny.write_checkpoint(tmp_path / "hf", config, weights, dtype))
    expected = read(theirs, match_tensors(theirs, parse_config(config)))
    folder = meta_layout.write_checkpoint(tmp_path / "meta", config, weights, ranks, dtype)
    checkpoint, _, matching = opened(folder)
    found = read(checkpoint, matching, step)
    assert found.keys() == expected.keys()
    for target, array in found.items():
        assert array.dtype == expected[target].dtype
        assert mx.array_equal(array, expected[target]), target


def test_names_of_the_reference_s_modules(tmp_path: Path) -> None:
    weights = tiny.tensors(SMALL)
    fused, apart = (
        meta_layout.write_checkpoint(tmp_path / str(fused), SMALL, weights, 2, fused=fused)
        for fused in (True, False)
    )
    checkpoint, _, matching = opened(fused)
    expected = read(checkpoint, matching)
    checkpoint, _, matching = opened(apart)
    found = read(checkpoint, matching, 5)
    assert found.keys() == expected.keys()
    assert all(mx.array_equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("name", ALL)
def test_same_config_as_hugging_face_s(tmp_path: Path, name: str) -> None:
    case = cases.MODELS[name]
    folder = meta_layout.write_checkpoint(tmp_path, case.config, case.weights(), 1)
    _, config, _ = opened(folder)
    assert config == replace(parse_config(case.config), image_token_id=200092)


def test_files_that_meta_has_not(tmp_path: Path) -> None:
    """With them, our own readers take the folder as they take the releases."""
    _, config, _ = opened(small(tmp_path))
    for name, content in json_files(config).items():
        (tmp_path / name).write_text(json.dumps(content))
    generation = load_generation_config(tmp_path)
    assert generation.eos_token_ids == (200001, 200007, 200008)
    assert (generation.do_sample, generation.temperature, generation.top_p) == (True, 0.6, 0.9)
    tiler = ImageTiler.load(tmp_path, tiny.SIDE_PIXELS)
    assert (tiler.tile_size, tiler.max_tiles) == (tiny.SIDE_PIXELS, 16)
    assert json_files(replace(config, vision=None)).keys() == {"generation_config.json"}


@pytest.mark.parametrize("name", ALL)
def test_logits_are_the_reference_s(tmp_path: Path, name: str) -> None:
    case = cases.MODELS[name]
    folder = meta_layout.write_checkpoint(tmp_path, case.config, case.weights(), 2)
    checkpoint, config, matching = opened(folder)
    model = Llama4(replace(config, image_token_id=tiny.PATCH_ID))
    model.load_weights(list(read(checkpoint, matching).items()))
    golden, length = goldens(name), case.texts[-1]
    assert_same_logits(model(mx.array(cases.text_ids(length))), golden[f"text {length}"], "text")
    features = model.image_features(tiny.pixels(cases.IMAGES["2x2"]))
    logits = model(model.embed(tiny.image_ids(cases.IMAGES["2x2"]), features))
    assert_same_logits(logits, golden["2x2"], "images")


def test_text_only(tmp_path: Path) -> None:
    config = tiny.config("maverick", num_hidden_layers=2)
    config["vision_config"] = None
    folder = meta_layout.write_checkpoint(tmp_path, config, tiny.tensors(config), 2)
    _, config, matching = opened(folder)
    assert config.vision is None
    assert not any("vision" in name for name in matching.sources)


def test_one_file_without_a_number(tmp_path: Path) -> None:
    folder = small(tmp_path, ranks=1)
    (folder / "consolidated.00.pth").rename(folder / "consolidated.pth")
    opened(folder)


def test_reads_only_the_rows_asked_for(tmp_path: Path) -> None:
    """An expert of a rank is F/2 · D of bfloat16: 96 / 2 · 64 · 2 bytes."""
    checkpoint, _, matching = opened(small(tmp_path))
    prefix = "language_model.model.layers.1.feed_forward.experts"
    for projection in ("gate", "up", "down"):
        source = matching.sources[f"{prefix}.{projection}_proj.weight"]
        data = source.read(checkpoint, 3, 5, "bfloat16")
        assert [len(part) for part in data] == [2 * 96 // 2 * 64 * 2] * 2
        assert row_bytes(source) == 96 * 64 * 2
    # Rows 30 to 33 of 64: some of each rank's.
    queries = matching.sources["language_model.model.layers.0.self_attn.q_proj.weight"]
    data = queries.read(checkpoint, 30, 34, "bfloat16")
    assert [len(part) for part in data] == [2 * 64 * 2] * 2
    for start in (28, 32, 40):
        data = queries.read(checkpoint, start, start + 4, "bfloat16")
        assert [len(part) for part in data] == [4 * 64 * 2]
    assert row_bytes(queries) == 64 * 2


def test_params_that_mean_the_same(tmp_path: Path) -> None:
    """-1 tokens, and keys that the reference ignores or fills in."""
    folder = small(tmp_path)
    _, expected, _ = opened(folder)
    path = folder / "params.json"
    params = json.loads(path.read_text())
    for key in ("norm_eps", "rope_theta", "lora_args"):
        params.pop(key)
    params |= {"vocab_size": -1, "quantization_args": {"scheme": None, "spinquant": False}}
    path.write_text(json.dumps({"model": params, "seed": 3}))
    assert opened(folder)[1] == expected


def test_params_of_other_models(tmp_path: Path) -> None:
    config = tiny.config("maverick")
    meta_layout.write_checkpoint(tmp_path, config, tiny.tensors(config), 1, "BF16")
    folder = with_params(
        tmp_path,
        nope_layer_interval=None,
        attention_chunk_size=None,
        attn_temperature_tuning=None,
        rope_scaling_factor=8.0,
        use_scaled_rope=True,
    )
    text = opened(folder)[1].text
    assert [kind.attention for kind in text.layers] == ["chunked"] * 8
    assert text.attention_chunk_size is None
    assert not text.attn_temperature_tuning
    assert text.rope_scaling is not None
    assert (text.rope_scaling.factor, text.rope_scaling.high_freq_factor) == (8.0, 1.0)


def test_widths_of_the_releases(tmp_path: Path) -> None:
    """dim 5120 gives 8192 and 16384, as their config.json says."""
    folder = with_params(
        small(tmp_path),
        dim=5120,
        n_heads=40,
        n_kv_heads=8,
        multiple_of=2048,
        ffn_dim_multiplier=1.2,
    )
    text = open_meta(folder)[2].text
    assert (text.intermediate_size, text.intermediate_size_mlp) == (8192, 16384)
    assert text.head_dim == 128


@pytest.mark.parametrize("step", [None, 1, 3])
def test_experts_of_eight_bits(tmp_path: Path, step: int | None) -> None:
    expected = float8_checkpoint(tmp_path)
    checkpoint, _, matching = opened(tmp_path)
    found = read(checkpoint, matching, step)
    for name, values in expected.items():
        array = found[f"language_model.model.{PREFIX}.{name}.weight"]
        assert array.dtype == mx.float32
        assert np.array_equal(np.array(array), values)
