"""config.json, in all its spellings, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_llama4.config import LayerKind, load_config, load_generation_config, parse_config
from mlx_llama4.errors import CheckpointError, ConfigError
from mlx_llama4.model.rope import inverse_frequencies
from mlx_llama4.quantization import Quantization
from tests import tiny


def kinds(**overrides: Any) -> tuple[LayerKind, ...]:
    return parse_config(tiny.config("scout", **overrides)).text.layers


def attention(**overrides: Any) -> str:
    """One letter a layer: c for chunked, g for global."""
    return "".join(kind.attention[0] for kind in kinds(**overrides))


def feed_forward(**overrides: Any) -> str:
    return "".join(kind.feed_forward[0] for kind in kinds(**overrides))


def test_kinds_of_attention() -> None:
    assert attention() == "cccgcccg"
    for empty in ([], None):
        assert attention(no_rope_layers=empty) == "cccgcccg"
    assert attention(no_rope_layers=[], no_rope_layer_interval=3) == "ccgccgcc"
    assert attention(no_rope_layers=[1, 0, 0, 1, 1, 1, 1, 0]) == "cggccccg"
    assert attention(no_rope_layers=[0] * 9, num_hidden_layers=3) == "ggg"
    assert attention(num_hidden_layers=1) == "c"


def test_kinds_of_feed_forward() -> None:
    assert feed_forward() == "mmmmmmmm"
    assert feed_forward(interleave_moe_layer_step=2) == "dmdmdmdm"
    assert feed_forward(interleave_moe_layer_step=3) == "ddmddmdd"
    assert feed_forward(interleave_moe_layer_step=2, moe_layers=[0, 5]) == "mddddmdd"
    assert feed_forward(moe_layers=[]) == "dddddddd"


@pytest.mark.parametrize(
    "written",
    [
        {"num_local_experts": 0, "num_experts_per_tok": 0, "moe_layers": []},
        {"num_local_experts": 0, "interleave_moe_layer_step": 0},
        {"num_local_experts": 0},
        {"num_local_experts": 16, "moe_layers": []},
        {"num_local_experts": None, "interleave_moe_layer_step": 0, "intermediate_size": None},
    ],
    ids=str,
)
def test_dense_models(written: dict[str, Any]) -> None:
    text = parse_config(tiny.config("scout", **written)).text
    assert {kind.feed_forward for kind in text.layers} == {"dense"}
    assert (text.num_local_experts, text.num_experts_per_tok) == (0, 0)


@pytest.mark.parametrize("count", [0, None, -1])
def test_experts_that_layers_need(count: int | None) -> None:
    with pytest.raises(ConfigError, match="num_local_experts"):
        parse_config(tiny.config("scout", num_local_experts=count, moe_layers=[3]))


def test_layers_that_see_everything() -> None:
    """Positions without chunks: as null, or as a list of types."""
    null = parse_config(tiny.config("scout", attention_chunk_size=None))
    for chunk in (None, 32):
        types = ["full_attention"] * 8
        written = tiny.config("scout", attention_chunk_size=chunk, layer_types=types)
        assert parse_config(written) == null
    all_global = tiny.config("scout", no_rope_layers=[0] * 8, layer_types=["full_attention"] * 8)
    assert parse_config(all_global).text.attention_chunk_size == 32  # of no layer


def test_temperature_as_boolean_or_number() -> None:
    for written, meant in ((True, True), (4, True), (1, True), (False, False), (0, False)):
        text = parse_config(tiny.config("scout", attn_temperature_tuning=written)).text
        assert text.attn_temperature_tuning is meant


def test_chunk_size_absent_and_null() -> None:
    raw = tiny.config("scout", attention_chunk_size=None)
    assert parse_config(raw).text.attention_chunk_size is None
    del raw["text_config"]["attention_chunk_size"]
    assert parse_config(raw).text.attention_chunk_size == 8192


def test_both_spellings_of_rope_and_of_the_image_token() -> None:
    old = tiny.config("scout")
    new = tiny.config("scout")
    scaling = new["text_config"].pop("rope_scaling")
    theta = new["text_config"].pop("rope_theta")
    new["text_config"]["rope_parameters"] = scaling | {"rope_theta": theta}
    new["vision_config"]["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "default"}
    del new["vision_config"]["rope_theta"]
    new["image_token_id"] = new.pop("image_token_index")
    assert parse_config(old) == parse_config(new)
    assert parse_config(old).text.rope_scaling.factor == 16


def test_which_rope_settings_count() -> None:
    """As in transformers: theta may stand beside either, and the older spelling wins."""
    for changes, theta, factor in (
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": None}, 500000.0, None),
        ({"rope_parameters": {"rope_theta": 7.0}, "rope_scaling": None}, 7.0, None),
        ({"rope_parameters": {"rope_theta": 7.0, "factor": 3.0}}, 500000.0, 16.0),
        ({"rope_scaling": None, "rope_theta": None}, 500000.0, None),
    ):
        text = parse_config(tiny.config("scout", **changes)).text
        assert text.rope_theta == theta
        assert (text.rope_scaling.factor if text.rope_scaling else None) == factor


def test_nulls_mean_the_default() -> None:
    raw = tiny.config("scout", hidden_act=None, rms_norm_eps=None, floor_scale=None)
    assert parse_config(raw).text.floor_scale == 8192


def test_maverick_has_no_rope_scaling() -> None:
    assert parse_config(tiny.config("maverick")).text.rope_scaling is None


def test_text_only() -> None:
    flat = parse_config(tiny.text_only(tiny.config("scout")))
    assert flat.vision is None
    assert flat.text == parse_config(tiny.config("scout")).text


def test_the_demo_s_config() -> None:
    folder = Path(__file__).parents[1] / "mlx_llama4" / "demo" / "checkpoint"
    config = load_config(folder)
    assert "".join(kind.attention[0] for kind in config.text.layers) == "cccgcccg"
    assert config.vision.tokens_per_tile == 4
    assert load_generation_config(folder).eos_token_ids == (1001, 1007, 1008)


def test_tokens_per_tile_of_the_releases() -> None:
    raw = tiny.config("scout")
    raw["vision_config"]["image_size"] = 336
    assert parse_config(raw).vision.tokens_per_tile == 144


def test_quantization_table() -> None:
    raw = tiny.config("scout")
    raw["quantization"] = {"group_size": 64, "bits": 4, "a.b": {"group_size": 32, "bits": 8}}
    raw["quantization"]["c.router"] = False
    table = parse_config(raw).quantization
    assert table.of("x") == Quantization(64, 4, "affine")
    assert table.of("a.b") == Quantization(32, 8, "affine")
    assert table.of("c.router") is None
    raw["quantization"] |= {"mode": "mxfp4", "group_size": 32}
    assert parse_config(raw).quantization.of("x").mode == "mxfp4"


def test_foreign_quantization_is_named() -> None:
    raw = tiny.config("scout")
    raw["quantization_config"] = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    config = parse_config(raw)
    assert config.quantization is None
    assert str(config.foreign_quantization) == "compressed-tensors float-quantized"


BAD = {
    "model_type 'qwen3'": {"model_type": "qwen3"},
    "model_type None": {"model_type": None},
    "text_config must be an object": {"text_config": 3},
    "image_token_index is None": {"image_token_index": None},
    "mode 'q4_k' is unknown; known are affine": {
        "quantization": {"group_size": 64, "bits": 4, "mode": "q4_k"}
    },
    "bits is missing": {"quantization": {"group_size": 64}},
    "quantization must be an object": {"quantization": "4bit"},
}
BAD_TEXT = {
    "hidden_size is missing": {"hidden_size": None},
    "hidden_size is 'large', not a whole number": {"hidden_size": "large"},
    "num_hidden_layers is 0, less than 1": {"num_hidden_layers": 0},
    "num_hidden_layers is 2.5": {"num_hidden_layers": 2.5},
    "rms_norm_eps is True": {"rms_norm_eps": True},
    "cannot share": {"num_key_value_heads": 3},
    "head_dim 15 is odd": {"head_dim": 15},
    "exceeds the 4 experts": {"num_experts_per_tok": 5},
    "hidden_act is 'gelu'": {"hidden_act": "gelu"},
    "no_rope_layers must list": {"no_rope_layers": [1, 0]},
    "0 (NoPE) for each of the 8 layers, not 4": {"no_rope_layers": 4},
    "layer_types and no_rope_layers disagree": {
        "layer_types": ["full_attention"] * 4 + ["chunked_attention"] * 4
    },
    "differ by layer type (full_attention, chunked_attention)": {
        "rope_scaling": {"full_attention": {"factor": 2}, "chunked_attention": {"factor": 4}}
    },
    "moe_layers must be a list": {"moe_layers": 2},
    "rope_type 'yarn'": {"rope_scaling": {"rope_type": "yarn", "factor": 2}},
    "hidden_size is inf": {"hidden_size": float("inf")},
    "rms_norm_eps is nan": {"rms_norm_eps": float("nan")},
    "rope_theta is -5, not above 0": {"rope_theta": -5},
    "rope_scaling must be an object": {"rope_scaling": [1]},
    "factor is missing": {"rope_scaling": {"rope_type": "llama3"}},
}
BAD_VISION = {
    "not a multiple of patch_size": {"image_size": 57},
    "4 heads": {"hidden_size": 36},
    "cannot be shuffled": {"pixel_shuffle_ratio": 0.3},
    "adapter takes intermediate_size 100": {"intermediate_size": 100},
    "differ": {"vision_output_dim": 49},
    "hidden_act is 'quick_gelu'": {"hidden_act": "quick_gelu"},
}


@pytest.mark.parametrize("message", [*BAD, *BAD_TEXT, *BAD_VISION])
def test_refused(message: str) -> None:
    raw = tiny.config("scout")
    raw.update(BAD.get(message, {}))
    if message in BAD_TEXT:
        raw["text_config"].update(BAD_TEXT[message])
    raw.get("vision_config", {}).update(BAD_VISION.get(message, {}))
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_config(tmp_path)
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_config(tmp_path)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="holds a list"):
        load_config(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_config(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_config(tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        load_config(path)


def test_generation_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny.config("scout")))
    assert load_generation_config(tmp_path).eos_token_ids == (301, 302)
    assert not load_generation_config(tmp_path).do_sample
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 7}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    found = load_generation_config(tmp_path)
    assert (found.eos_token_ids, found.temperature, found.top_p, found.top_k) == ((7,), 0.6, 0.9, 0)
    for off in (-1, 0, None):
        (tmp_path / "generation_config.json").write_text(json.dumps({"top_k": off}))
        assert load_generation_config(tmp_path).top_k == 0
    for wrong in (-2, 0.5, "all"):
        (tmp_path / "generation_config.json").write_text(json.dumps({"top_k": wrong}))
        with pytest.raises(ConfigError, match="top_k is"):
            load_generation_config(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "stop"}')
    with pytest.raises(ConfigError, match="eos_token_id must be"):
        load_generation_config(tmp_path)


def test_folder_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, **options: object) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", denied)  # root may enter anything
    with pytest.raises(CheckpointError, match=r"cannot read .*: Permission denied"):
        load_config(tmp_path)


def test_rope_of_the_releases() -> None:
    """Scout: wavelengths above 8,192 positions are 16 times longer, the others as they were."""
    config = parse_config(tiny.config("scout", head_dim=128))
    scaled = inverse_frequencies(128, 500000.0, config.text.rope_scaling)
    plain = inverse_frequencies(128, 500000.0, None)
    long = 2 * np.pi / plain > 8192
    assert 0 < long.sum() < 64
    assert np.array_equal(scaled[~long], plain[~long])
    assert np.array_equal(scaled[long], plain[long] / np.float32(16))
