"""Logits against the reference implementation's, in float32."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.opening import load_model
from tests import tiny
from tests.golden import cases
from tests.golden.logits import goldens
from tests.tolerance import assert_same_logits

Models = Callable[[str], Llama4]

TEXTS = [(name, length) for name, case in cases.MODELS.items() for length in case.texts]
IMAGES = [(name, image_case) for name, case in cases.MODELS.items() for image_case in case.images]
BOTH = ("scout", "maverick")


@pytest.mark.parametrize("name", cases.MODELS)
def test_weights_are_the_reference_s(name: str) -> None:
    """If this fails, numpy draws other weights here and no other golden can hold."""
    assert tiny.fingerprint(cases.MODELS[name].weights()) == goldens(name)["weights"]


@pytest.mark.parametrize(("name", "length"), TEXTS)
def test_text(golden_model: Models, name: str, length: int) -> None:
    ids = mx.array(cases.text_ids(length))
    assert_same_logits(golden_model(name)(ids), goldens(name)[f"text {length}"], "text")


@pytest.mark.parametrize(("name", "case"), IMAGES)
def test_images(golden_model: Models, name: str, case: str) -> None:
    model, grids = golden_model(name), cases.IMAGES[case]
    features = model.image_features(tiny.pixels(grids))
    logits = model(model.embed(tiny.image_ids(grids), features))
    assert_same_logits(logits, goldens(name)[case], "images")


@pytest.mark.parametrize("name", BOTH)
def test_prefill_then_one_by_one(golden_model: Models, name: str) -> None:
    model, ids = golden_model(name), mx.array(cases.text_ids(150))
    cache = model.make_cache()
    model(ids[:, : cases.PREFILLED], cache)
    steps = [model(ids[:, i : i + 1], cache)[0] for i in range(cases.PREFILLED, 150)]
    assert_same_logits(mx.concatenate(steps), goldens(name)["decode"], "text")


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("splits", [[1] * 150, [13] * 12, [31, 1, 1, 31, 86], [100, 7, 43], [149]])
def test_any_split_gives_the_same_logits(
    golden_model: Models, name: str, splits: list[int]
) -> None:
    model, ids = golden_model(name), mx.array(cases.text_ids(150))
    cache, parts, start = model.make_cache(), [], 0
    for size in [*splits, 150]:
        if start < 150:
            parts.append(model(ids[:, start : start + size], cache)[0])
            start += size
    assert_same_logits(mx.concatenate(parts), goldens(name)["text 150"], "text")


@pytest.mark.parametrize("attention_step", [1, 7, 32, 50])
def test_attention_steps_inside_a_span(golden_model: Models, attention_step: int) -> None:
    ids = mx.array(cases.text_ids(150))
    logits = golden_model("scout")(ids, attention_step=attention_step)
    assert_same_logits(logits, goldens("scout")["text 150"], "text")


def test_several_rows(golden_model: Models) -> None:
    model, ids = golden_model("scout"), cases.text_ids(150)
    logits = model(mx.array(np.concatenate([ids, ids[:, ::-1], ids])))
    assert_same_logits(logits[0], goldens("scout")["text 150"], "text")
    assert_same_logits(logits[2], goldens("scout")["text 150"], "text")


def test_last_position_only(golden_model: Models) -> None:
    logits = golden_model("scout")(mx.array(cases.text_ids(20)), last_only=True)
    assert logits.shape == (1, 1, tiny.VOCABULARY)
    assert_same_logits(logits, goldens("scout")["text 20"][-1:], "text")


def test_no_chunks_is_one_endless_chunk(tmp_path: Path) -> None:
    """The reference refuses attention_chunk_size null; a chunk past the end is the same."""
    case = cases.MODELS["one_chunk"]
    config = tiny.config(case.preset, attention_chunk_size=None)
    model = converted(tmp_path, config, case.weights())
    ids = mx.array(cases.text_ids(100))
    assert_same_logits(model(ids), goldens("one_chunk")["text 100"], "text")
    cache = model.make_cache()
    parts = [model(ids[:, i : i + 30], cache)[0] for i in range(0, 100, 30)]
    assert_same_logits(mx.concatenate(parts), goldens("one_chunk")["text 100"], "text")


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_text_only_checkpoint(tmp_path: Path, dtype: str) -> None:
    """llama4_text, with the names that Llama4ForCausalLM saves: the same model less vision."""
    case = cases.MODELS["scout"]
    config = tiny.text_only(case.config)
    model = converted(tmp_path, config, tiny_text_weights(case.weights()), dtype)
    assert not hasattr(model, "vision_model")
    ids = mx.array(cases.text_ids(150))
    assert_same_logits(model(ids), goldens("scout")["text 150"], "text")


def test_multimodal_config_without_vision_weights(tmp_path: Path) -> None:
    weights = {name: w for name, w in cases.MODELS["scout"].weights().items() if "language" in name}
    model = converted(tmp_path, cases.MODELS["scout"].config, weights)
    ids = mx.array(cases.text_ids(20))
    assert_same_logits(model(ids), goldens("scout")["text 20"], "text")


def converted(
    folder: Path, config: dict, weights: dict[str, np.ndarray], dtype: str = "F32"
) -> Llama4:
    source = tiny.write_checkpoint(folder / "source", config, weights, dtype)
    convert(source, folder / "mlx", Recipe("float32", None))
    return load_model(folder / "mlx", mx.float32)


def tiny_text_weights(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    prefix = "language_model."
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
