"""Two models compared layer by layer, against the plain way: whole models and whole softmaxes."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import mlx_llama4.evaluation.comparison as comparison_module
import mlx_llama4.evaluation.layerwise as layerwise_module
from mlx_llama4.checkpoint.open import open_source
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import CHECKPOINT, NOTES, PICTURES
from mlx_llama4.evaluation.comparison import Figures, WindowComparison, compare, summarize
from mlx_llama4.evaluation.layerwise import LayerwiseModel
from mlx_llama4.opening import load_model
from mlx_llama4.prompt.processor import Processor
from mlx_llama4.prompt.tokenizer import Tokenizer
from mlx_llama4.prompt.windows import Window, image_windows, text_windows
from mlx_llama4.quantization import Quantization
from tests import tiny
from tests.evaluation.windows import windows_of
from tests.golden import cases

# What float32 leaves uncertain in a log-probability, relative to the largest.
ROUNDING = 1e-5


def log_probabilities(folder: Path, window: Window) -> np.ndarray:
    """Of the whole model, float64 [positions that count, vocabulary]."""
    model = load_model(folder, mx.float32)
    prompt = window.prompt
    features = [model.image_features(image.pixel_values()) for image in prompt.images]
    embeddings = model.embed(prompt.ids[None], mx.concatenate(features) if features else None)
    logits = np.array(model(embeddings))[0, window.first :].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def plainly(a: Path, b: Path, window: Window) -> WindowComparison:
    p, q = log_probabilities(a, window), log_probabilities(b, window)
    following = window.prompt.ids[window.first + 1 :]
    places = np.arange(len(following))
    return WindowComparison(
        (np.exp(p) * (p - q)).sum(axis=-1),
        (p.argmax(axis=-1) == q.argmax(axis=-1)).astype(float),
        -p[places, following],
        -q[places, following],
    )


def assert_same(found: WindowComparison, expected: WindowComparison) -> None:
    assert np.array_equal(found.agreements, expected.agreements)
    scale = expected.losses_a.max(initial=1)
    for name in ("divergences", "losses_a", "losses_b"):
        values, wanted = getattr(found, name), getattr(expected, name)
        assert values.shape == wanted.shape
        assert np.abs(values - wanted).max(initial=0) < ROUNDING * scale, name


@pytest.fixture(scope="session")
def demo_4bit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "demo-4bit"
    convert(CHECKPOINT, folder, Recipe("bfloat16", Quantization(64, 4)))
    return folder


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text(NOTES)
    return path


@pytest.mark.parametrize(
    "name", ["scout", "maverick", "odd_layers", "two_experts", "one_chunk", "untuned"]
)
def test_every_position_is_that_of_whole_models(
    golden_folder: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """Windows of several chunks, shorter than one, and of a single token."""
    a = golden_folder(name)
    convert(a, tmp_path / "b", Recipe("float32", Quantization(32, 4)))
    windows = [*windows_of(100, 1, 33), *windows_of(50, first=20)]
    found = compare(open_source(a), open_source(tmp_path / "b"), windows)
    for one, window in zip(found, windows, strict=True):
        assert_same(one, plainly(a, tmp_path / "b", window))
    assert [len(one.divergences) for one in found] == [100, 1, 33, 30]
    assert [len(one.losses_a) for one in found] == [99, 0, 32, 29]
    assert summarize(found).mean_divergence > 1e-3


@pytest.mark.parametrize(("span", "rows", "block"), [(7, 50, 1), (32, 320, 5000), (45, 1, 2**26)])
def test_however_the_work_is_cut(
    golden_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch,
    span: int, rows: int, block: int,
) -> None:  # fmt: skip
    a, b = golden_folder("scout"), golden_folder("maverick")
    windows = windows_of(100, 45)
    expected = [plainly(a, b, window) for window in windows]
    monkeypatch.setattr(layerwise_module, "SPAN", span)
    monkeypatch.setattr(comparison_module, "SPAN", span)
    monkeypatch.setattr(comparison_module, "HEAD_ROWS", rows)
    monkeypatch.setattr(layerwise_module, "BLOCK_BYTES", block)
    found = compare(open_source(a), open_source(b), windows)
    for one, wanted in zip(found, expected, strict=True):
        assert_same(one, wanted)


def test_images_and_text(demo_4bit: Path, demo_folder: Path, notes: Path) -> None:
    """One picture of several tiles, one of a single one; the positions are those after them."""
    source = open_source(demo_folder)
    pictures = [PICTURES / "wide.png", PICTURES / "star.png"]
    of_images = image_windows(pictures, Processor.load(demo_folder, source.config))
    of_text = text_windows(notes, Tokenizer.load(demo_folder), window=100, max_tokens=130)
    assert [len(window.prompt.ids) for window in of_text] == [101, 31]
    end = Tokenizer.load(demo_folder).special_id("<|image_end|>")
    assert [window.prompt.ids[window.first] for window in of_images] == [end, end]
    windows = [*of_text, *of_images]
    found = compare(source, open_source(demo_4bit), windows)
    for one, window in zip(found, windows, strict=True):
        assert_same(one, plainly(demo_folder, demo_4bit, window))


def test_windows_are_the_text(notes: Path) -> None:
    tokenizer = Tokenizer.load(CHECKPOINT)
    windows = text_windows(notes, tokenizer, window=70, max_tokens=10**6)
    begin = tokenizer.special_id("<|begin_of_text|>")
    assert {window.prompt.ids[0] for window in windows} == {begin}
    assert [token for one in windows for token in one.prompt.ids[1:]] == tokenizer.encode(NOTES)
    assert [len(one.prompt.ids) for one in windows] == [71, 71, 3]


@pytest.mark.parametrize("name", ["scout", "maverick"])
def test_a_model_is_itself(golden_folder: Callable[[str], Path], name: str) -> None:
    source = open_source(golden_folder(name))
    figures = summarize(compare(source, source, windows_of(60, 20)))
    assert figures.max_divergence == figures.divergence_error == 0
    assert figures.top_1_agreement == figures.perplexity_ratio == 1


@pytest.mark.parametrize("stored", ["F32", "BF16"])
def test_an_unconverted_folder_is_its_conversion(tmp_path: Path, stored: str) -> None:
    """Nothing is lost on the way to float32, whatever the layout and the type."""
    case = cases.MODELS["scout"]
    source = tiny.write_checkpoint(tmp_path / "source", case.config, case.weights(), stored)
    convert(source, tmp_path / "mlx", Recipe("float32", None))
    figures = summarize(compare(open_source(source), open_source(tmp_path / "mlx"), windows_of(60)))
    assert figures.max_divergence == 0 and figures.perplexity_ratio == 1


def write_packed_integers(folder: Path) -> None:
    """Scout in compressed-tensors' int4, groups of 32, experts one by one."""
    config = tiny.text_only(tiny.config("scout"))
    arrays: dict[str, mx.array] = {}
    for name, weight in tiny.tensors(config).items():
        experts, _, projection = name.partition("experts.")
        if projection == "gate_up_proj":
            gate, up = np.split(weight.swapaxes(1, 2), 2, axis=1)
            parts = {"gate_proj": gate, "up_proj": up}
        elif projection == "down_proj":
            parts = {"down_proj": weight.swapaxes(1, 2)}
        else:
            if weight.ndim == 2 and "_proj" in name:
                arrays |= packed_integers(name, weight)
            else:
                arrays[name] = mx.array(weight).astype(mx.bfloat16)
            continue
        for part, stacked in parts.items():
            for index, one in enumerate(stacked):
                arrays |= packed_integers(f"{experts}experts.{index}.{part}.weight", one)
    table = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": table}))
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)


def packed_integers(name: str, weight: np.ndarray) -> dict[str, mx.array]:
    groups = weight.reshape(len(weight), -1, 32)
    scales = tiny.to_bfloat16(np.abs(groups).max(axis=-1) / 7)
    codes = np.clip(np.round(groups / scales[..., None]) + 8, 0, 15).astype(np.uint32)
    nibbles = codes.reshape(len(weight), -1, 8) << (4 * np.arange(8, dtype=np.uint32))
    words = nibbles.sum(axis=-1, dtype=np.uint32).view(np.int32)
    return {
        f"{name}_packed": mx.array(words),
        f"{name}_scale": mx.array(scales).astype(mx.bfloat16),
    }


def test_packed_integers_and_their_conversions(tmp_path: Path) -> None:
    """Kept on their grid nothing is lost; in 8 bits of MLX's own grid, a little."""
    write_packed_integers(tmp_path / "source")
    source = open_source(tmp_path / "source")
    assert source.is_packed
    convert(source.folder, tmp_path / "kept", Recipe("bfloat16", None, keeps=True))
    convert(source.folder, tmp_path / "8 bits", Recipe("bfloat16", Quantization(32, 8)))
    windows = windows_of(60)
    kept = compare(source, open_source(tmp_path / "kept"), windows)
    again = compare(source, open_source(tmp_path / "8 bits"), windows)
    assert summarize(kept).max_divergence == 0
    assert 0 < summarize(again).mean_divergence < 0.05


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_modes_of_eight_bit_scales(
    golden_folder: Callable[[str], Path], tmp_path: Path, mode: str
) -> None:
    group_size, bits = {"mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}[mode]
    a = golden_folder("scout")
    convert(a, tmp_path / "packed", Recipe("float32", Quantization(group_size, bits, mode)))
    convert(tmp_path / "packed", tmp_path / "dense", Recipe("float32", None))
    windows = windows_of(40)
    packed = compare(open_source(a), open_source(tmp_path / "packed"), windows)
    assert_same(packed[0], plainly(a, tmp_path / "dense", windows[0]))


def test_fewer_bits_are_further_away(demo_folder: Path, demo_4bit: Path, tmp_path: Path) -> None:
    greetings = tmp_path / "greetings.txt"
    greetings.write_text("Hello! How can I help you?\n" * 10)  # a text that the demo predicts
    source = open_source(CHECKPOINT)
    windows = text_windows(greetings, Tokenizer.load(CHECKPOINT), window=2048, max_tokens=16384)
    eight, four = (
        summarize(compare(source, open_source(folder), windows))
        for folder in (demo_folder, demo_4bit)
    )
    assert 0 < 5 * eight.mean_divergence < four.mean_divergence
    assert eight.top_1_agreement > four.top_1_agreement
    assert abs(math.log(eight.perplexity_ratio)) < 0.02


def test_figures() -> None:
    first = WindowComparison(
        np.array([0.0, 2.0]), np.array([1.0, 0.0]), np.array([math.log(4)]), np.array([0.0])
    )
    second = WindowComparison(
        np.array([4.0, 2.0]), np.array([1.0, 1.0]), np.array([0.0]), np.array([math.log(16)])
    )
    found = summarize([first, second])
    assert found == Figures(
        positions=4,
        mean_divergence=2.0,
        divergence_error=pytest.approx(1.96 * math.sqrt(8 / 4) / 2),
        median_divergence=2.0,
        divergence_99th_percentile=pytest.approx(3.94),
        max_divergence=4.0,
        top_1_agreement=0.75,
        predicted_tokens=2,
        perplexity_a=pytest.approx(2.0),
        perplexity_b=pytest.approx(4.0),
    )
    assert found.perplexity_ratio == pytest.approx(2.0)


@pytest.mark.slow
def test_memory_is_that_of_an_expert(tmp_path: Path) -> None:
    """Whatever the number of experts and layers: 6.3 MB an expert, 100 MB a layer."""
    peaks = []
    for layers in (1, 3):
        config = tiny.text_only(
            tiny.config(
                "scout", num_hidden_layers=layers, hidden_size=512, intermediate_size=1024,
                num_local_experts=16, head_dim=16,
            )
        )  # fmt: skip
        folder = tmp_path / str(layers)
        tiny.write_checkpoint(folder, config, tiny.tensors(config), "BF16")
        source = open_source(folder)
        model = LayerwiseModel(source)
        mx.clear_cache()
        mx.reset_peak_memory()
        held = mx.get_active_memory()
        hidden = model.hidden_states([window.prompt for window in windows_of(64, 64)])
        peaks.append(mx.get_peak_memory() - held)
        assert len(hidden) == 2
        del hidden
    expert_bytes = 3 * 512 * 1024 * 4
    # The expert in float32, and while it is widened its bfloat16.
    assert peaks[0] < 1.8 * expert_bytes
    assert peaks[1] < 1.1 * peaks[0]


def test_progress_ends_at_the_end(demo_folder: Path, demo_4bit: Path, notes: Path) -> None:
    """Though experts that no token chose are not read, nor a vision tower that nobody needs."""
    told: list[tuple[int, int]] = []
    sources = (open_source(demo_folder), open_source(demo_4bit))
    windows = text_windows(notes, Tokenizer.load(CHECKPOINT), window=2048, max_tokens=2)
    compare(*sources, windows, lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]
    stored = sum(source.checkpoint.nbytes for source in sources)
    assert told[-1][1] == pytest.approx(stored, rel=0.01)


def test_experts_that_no_token_chose_are_not_read(
    golden_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(golden_folder("maverick"))
    read: list[str] = []
    original = type(source.checkpoint).read

    def noted(self: object, tensor: object, *rows: int) -> np.ndarray:
        read.append(f"{tensor.name} {rows}")
        return original(self, tensor, *rows)

    monkeypatch.setattr(type(source.checkpoint), "read", noted)
    LayerwiseModel(source).hidden_states([windows_of(1)[0].prompt])
    experts = [name for name in read if ".experts." in name]
    assert len(experts) == 3 * tiny.LAYERS // 2  # one of eight, in every second layer
    assert not [name for name in read if "vision" in name or "lm_head" in name]
