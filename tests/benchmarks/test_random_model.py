"""`python -m benchmarks random-model`: folders that load, talk, and compute with sane numbers."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from benchmarks.harness.random_model import (
    packing_of,
    recipe_of,
    scaled_release,
    write_random_model,
)
from benchmarks.harness.random_tokenizer import LEAST_VOCABULARY, patch_id, random_tokenizer_files
from mlx_llama4.checkpoint.meta.params import PATCH
from mlx_llama4.checkpoint.safetensors import open_checkpoint
from mlx_llama4.config import parse_config
from mlx_llama4.errors import InputError, OutputError
from mlx_llama4.generation.generate import stream_generate
from mlx_llama4.generation.settings import GenerationSettings
from mlx_llama4.opening import load
from mlx_llama4.planning.inspection import inspect_folder
from mlx_llama4.planning.releases import release_config
from mlx_llama4.quantization import FIXED_MODES, Quantization
from tests.benchmarks.program import benchmark

STAR = Path(__file__).parents[2] / "mlx_llama4/demo/pictures/star.png"


def small(preset: str = "scout", layers: int = 4) -> dict:
    raw = scaled_release(preset, 16, layers, experts=4, vocabulary=4096)
    # Pictures of 2 × 2 positions, not of 144.
    raw["vision_config"] |= {"image_size": 56}
    return raw


@pytest.mark.parametrize("preset", ["scout", "maverick"])
def test_unscaled_it_is_the_release(preset: str) -> None:
    assert parse_config(scaled_release(preset)) == release_config(preset)


@pytest.mark.parametrize(
    ("preset", "experts"),
    [
        ("scout", packing_of(2)),
        ("maverick", packing_of(3)),
        ("scout", None),
        ("maverick", FIXED_MODES["mxfp4"]),
        ("scout", FIXED_MODES["nvfp4"]),
    ],
)
@pytest.mark.slow
def test_a_folder_answers_about_a_picture(
    tmp_path: Path, preset: str, experts: Quantization | None
) -> None:
    raw = small(preset)
    recipe = recipe_of(experts, packing_of(4), "bfloat16")
    nbytes = write_random_model(tmp_path / "model", raw, recipe, shard_bytes=3_000_000)
    found = inspect_folder(tmp_path / "model")
    assert found.complete and found.files > 2
    assert found.nbytes == nbytes
    (routed,) = [part for part in found.parts if part.name == "routed experts"]
    stored = "BF16" if experts is None else f"{experts.bits} bits {experts.mode}"
    assert routed.stored_as == (stored,)
    model, processor = load(tmp_path / "model")
    picture = {"type": "image", "image": STAR}
    content = [picture, {"type": "text", "text": "What is this?"}]
    prompt = processor.encode([{"role": "user", "content": content}])
    processor.end_tokens = frozenset()
    settings = GenerationSettings(max_tokens=8, temperature=0.0)
    steps = list(stream_generate(model, processor, prompt, settings))
    assert len(steps) == 8
    assert all(-30 < step.logprob <= 0 for step in steps)


@pytest.mark.slow
def test_weights_keep_the_size_of_activations_and_spread_over_experts(tmp_path: Path) -> None:
    """Mean 0 and variance 1 / inputs, packed or not; every expert is chosen by some token."""
    raw = small()
    packed = recipe_of(packing_of(4), None, "float32")
    write_random_model(tmp_path / "model", raw, packed)
    model, _ = load(tmp_path / "model")
    experts = model.language_model.model.layers[1].feed_forward.experts
    for linear in (experts.gate_proj, experts.down_proj):
        weights = np.array(mx.dequantize(linear.weight, linear.scales, linear.biases, 64, 4))
        width = weights.shape[-1]
        assert abs(weights.mean()) < 0.02 / np.sqrt(width)
        assert weights.std() * np.sqrt(width) == pytest.approx(1, rel=0.03)
        flat = weights.reshape(len(weights), -1)
        likeness = np.corrcoef(flat) - np.eye(len(flat))
        assert np.abs(likeness).max() < 0.1  # no expert is another's copy
    ids = mx.random.randint(0, 2000, (1, 200), key=mx.random.key(0))
    logits = model(ids)
    assert 0.3 < mx.std(logits).item() < 3
    x = model.language_model.model.embed(ids)
    _, chosen = model.language_model.model.layers[0].feed_forward.route(x)
    assert np.bincount(np.array(chosen), minlength=4).min() > 20


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    recipe = recipe_of(packing_of(4), packing_of(8), "bfloat16")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_random_model(tmp_path / name, small(), recipe, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.slow
def test_tokenizer_of_the_releases_size() -> None:
    """Special tokens where the releases have them, and a text for every other id."""
    files = random_tokenizer_files(202_048)
    tokenizer = json.loads(files["tokenizer.json"])
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    assert ids["<|patch|>"] == PATCH == patch_id(202_048)
    assert ids["<|begin_of_text|>"] == 200_000 and len(ids) == 2048
    assert sorted(tokenizer["model"]["vocab"].values()) == list(range(200_000))


def test_text_only_has_no_vision_tower(tmp_path: Path) -> None:
    raw = scaled_release("maverick", 16, 2, 4, LEAST_VOCABULARY, text_only=True)
    write_random_model(tmp_path / "model", raw, recipe_of(packing_of(4), None, "bfloat16"))
    assert not any("vision" in name for name in open_checkpoint(tmp_path / "model").tensors)
    assert inspect_folder(tmp_path / "model").complete


def test_refusals_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(packing_of(4), packing_of(4), "bfloat16")
    with pytest.raises(InputError, match="a vocabulary of 1000: the tokenizer needs 2304"):
        write_random_model(tmp_path / "out", small() | small_vocabulary(1000), recipe)
    whole = scaled_release("maverick")
    monkeypatch.setattr("mlx_llama4.convert.write.free_bytes", lambda out: 10**9)
    with pytest.raises(OutputError, match=r"needs 22\d GB but only 1 GB are free"):
        write_random_model(tmp_path / "out", whole, recipe)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(OutputError, match="already exists"):
        write_random_model(tmp_path / "taken", small(), recipe)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_llama4.convert.write.FolderWriter.finish", stop)
    recipe = recipe_of(packing_of(4), packing_of(4), "bfloat16")
    with pytest.raises(KeyboardInterrupt):
        write_random_model(tmp_path / "out", small(), recipe)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preset", "behemoth"], "--preset behemoth: choose of scout, maverick"),
        (["--scale", 3], "--scale 3: choose of 1, 2, 4, 8, 16"),
        (["--bits", 7], "7 bits are not supported"),
    ],
)
def test_bad_options_end_in_one_line(tmp_path: Path, options: list[object], words: str) -> None:
    result = benchmark("random-model", tmp_path / "out", *options)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and words in line
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path) -> None:
    size = ("--scale", 16, "--layers", 2, "--experts", 2, "--vocabulary", 4096)
    result = benchmark("random-model", tmp_path / "out", *size, "--text-only", "--bits", 2)
    assert result.returncode == 0, result.stderr
    assert "out: " in result.stdout and " a second)" in result.stdout
    assert inspect_folder(tmp_path / "out").complete


def small_vocabulary(vocabulary: int) -> dict:
    raw = small()
    raw["text_config"]["vocab_size"] = vocabulary
    return raw
