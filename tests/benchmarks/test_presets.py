"""Presets of benchmarks: of the size they claim to be, and refused where they do not fit."""

import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.harness import presets
from benchmarks.harness.presets import Preset, preset_config, preset_folder
from benchmarks.harness.random_model import packing_of, plan_weights, recipe_of
from mlx_llama4.checkpoint.safetensors import open_checkpoint
from mlx_llama4.config import Config, parse_config
from mlx_llama4.errors import InputError, OutputError
from mlx_llama4.opening import load
from mlx_llama4.planning.releases import release_config
from mlx_llama4.tensors import model_tensors


def config_of(name: str) -> Config:
    return parse_config(preset_config(name))


def active_parameters(config: Config) -> int:
    """All but the experts that a token is not given to."""
    sizes = {name: math.prod(spec.shape) for name, spec in model_tensors(config).items()}
    routed = sum(size for name, size in sizes.items() if ".experts." in name)
    return sum(sizes.values()) - routed + routed // config.text.num_local_experts


def test_tiny_is_tiny_and_has_everything() -> None:
    config = config_of("tiny")
    assert active_parameters(config) <= 10_000_000
    assert config.text.attention_chunk_size == 256
    kinds = [layer.attention for layer in config.text.layers[:-1]]
    assert kinds == ["chunked", "chunked", "chunked", "global"]
    assert {layer.feed_forward for layer in config.text.layers} == {"moe"}
    assert config.vision is not None
    assert config.vision.hidden_size // config.vision.num_attention_heads == 88


def test_layer_presets_are_the_releases_but_for_their_depth() -> None:
    scout, maverick = config_of("scout-layer").text, config_of("maverick-layer").text
    for text, release in ((scout, "scout"), (maverick, "maverick")):
        whole = release_config(release).text
        assert text.layers == whole.layers[:4]
        assert text.num_local_experts == whole.num_local_experts
        assert (text.hidden_size, text.intermediate_size, text.vocab_size) == (5120, 8192, 202_048)
    assert [layer.attention for layer in scout.layers].count("global") == 1
    assert [layer.feed_forward for layer in maverick.layers].count("moe") == 2
    for name in ("scout", "maverick"):
        assert config_of(name) == release_config(name)


def test_small_is_about_250_megabytes() -> None:
    packing = packing_of(4)
    plan = plan_weights(config_of("small"), recipe_of(packing, packing, "float32"))
    assert 240e6 < plan.output_bytes < 280e6


def test_tiny_loads_with_float32_activations_on_the_cpu(tmp_path: Path) -> None:
    folder = preset_folder(Preset.tiny, tmp_path)
    assert folder == tmp_path / "tiny"
    stored = {tensor.dtype for tensor in open_checkpoint(folder).tensors.values()}
    assert stored == {"U32", "F32"}
    model, processor = load(folder)
    ids = mx.array([processor.tokenizer.encode("so it goes")])
    logits = model(ids)
    assert logits.dtype == mx.float32
    assert 0.3 < mx.std(logits).item() < 3


@pytest.mark.slow
def test_mlx_lm_reads_the_same_model(tmp_path: Path) -> None:
    from mlx_lm.utils import load_model

    folder = preset_folder("tiny", tmp_path)
    ids = mx.array(np.random.default_rng(0).integers(0, 1000, (1, 20)))
    peer, _ = load_model(folder)
    ours, _ = load(folder)
    assert mx.abs(peer(ids) - ours(ids)).max().item() < 1e-3


def test_an_unknown_preset() -> None:
    with pytest.raises(InputError, match="--preset large: choose of tiny, small, scout-layer"):
        preset_config("large")


def test_what_the_memory_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presets, "weight_memory", lambda: 64 * 10**9)
    for name, size in (("scout", "77.9 GB"), ("maverick", "279 GB")):
        with pytest.raises(InputError, match=f"--preset {name}: it needs {size} of memory"):
            preset_folder(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_the_disk_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_llama4.convert.write.free_bytes", lambda out: 10**6)
    with pytest.raises(OutputError, match="only 1 MB are free"):
        preset_folder("tiny", tmp_path)
    assert not list(tmp_path.iterdir())
