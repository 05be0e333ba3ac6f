"""Folders go both ways between us, mlx-lm and mlx-vlm, and mean the same model.

mlx-lm is there wherever we are; mlx-vlm only with the `peers` extra, so a folder that it converted
is kept in golden/mlx_vlm_4bit (see golden/README.md), and .ci/peers.py runs the other direction.
"""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.opening import load_model
from mlx_llama4.planning.inspection import inspect_folder
from mlx_llama4.quantization import Quantization
from tests import tiny
from tests.golden import cases
from tests.golden.logits import goldens
from tests.tolerance import assert_same_logits

RECIPES = {
    "float32": Recipe("float32", None),
    "4 bits": Recipe("float32", Quantization(32, 4)),
    "8 bits": Recipe("float32", Quantization(64, 8)),
}
IDS = mx.array(cases.text_ids(150))
# Both peers have this epsilon of the QK norm written into their code; the config says 1e-5.


def converted(root: Path, name: str, recipe: Recipe) -> Path:
    case = cases.MODELS[name]
    source = tiny.write_checkpoint(root / "source", case.config, case.weights())
    convert(source, root / "ours", recipe)
    return root / "ours"


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", ["scout", "maverick", "small_qk"])
def test_mlx_lm_reads_what_we_wrote(
    tmp_path: Path, mlx_lm: object, right_epsilon: None, name: str, recipe: Recipe
) -> None:
    folder = converted(tmp_path, name, recipe)
    peer, _ = mlx_lm.load_model(folder)
    ours = np.array(load_model(folder, mx.float32)(IDS))
    assert_same_logits(np.array(peer(IDS)), ours, "text")
    if recipe.quantization is None:
        assert_same_logits(np.array(peer(IDS))[0], goldens(name)["text 150"], "text")


def test_the_epsilon_is_the_only_difference(tmp_path: Path, mlx_lm: object) -> None:
    """Where queries are small, mlx-lm as it is gives another model (0.6 where 6e-6 is noise)."""
    folder = converted(tmp_path, "small_qk", RECIPES["float32"])
    peer, _ = mlx_lm.load_model(folder)
    error = np.abs(np.array(peer(IDS))[0] - goldens("small_qk")["text 150"]).max()
    assert error > 0.1


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("name", ["scout", "maverick"])
def test_we_read_what_mlx_lm_wrote(
    tmp_path: Path, mlx_lm: object, right_epsilon: None, name: str, quantize: bool
) -> None:
    """Its router is quantized with everything else, and the vision tower is gone."""
    case = cases.MODELS[name]
    source = tiny.write_checkpoint(tmp_path / "source", case.config, case.weights())
    peer, config = mlx_lm.load_model(source)
    if quantize:
        peer, config = mlx_lm.quantize_model(peer, config, group_size=32, bits=4)
    (tmp_path / "theirs").mkdir()
    mlx_lm.save_model(tmp_path / "theirs", peer)
    mlx_lm.save_config(config, tmp_path / "theirs" / "config.json")
    ours = load_model(tmp_path / "theirs", mx.float32)
    assert not hasattr(ours, "vision_model")
    assert_same_logits(np.array(ours(IDS)), np.array(peer(IDS)), "text")
    assert inspect_folder(tmp_path / "theirs").complete
    parts = {part.name: part for part in inspect_folder(tmp_path / "theirs").parts}
    assert parts["router"].stored_as == (("4 bits affine",) if quantize else ("F32",))


VLM_FOLDER = Path(__file__).parent / "golden" / "mlx_vlm_4bit"


def test_we_read_what_mlx_vlm_wrote() -> None:
    """4 bits, router included, vision tower kept: its logits, with the epsilon put right."""
    ours = load_model(VLM_FOLDER, mx.float32)
    expected = np.load(VLM_FOLDER / "logits.npz")
    ids = cases.text_ids(60)
    assert_same_logits(np.array(ours(mx.array(ids))), expected["text"], "text")
    grids = [(2, 1)]
    features = ours.image_features(tiny.pixels(grids))
    logits = ours(ours.embed(tiny.image_ids(grids), features))
    assert_same_logits(np.array(logits), expected["image"], "images")


@pytest.mark.peers
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", ["scout", "maverick"])
def test_mlx_vlm_reads_what_we_wrote(
    tmp_path: Path, right_epsilon: None, name: str, recipe: Recipe
) -> None:
    mlx_vlm = pytest.importorskip("mlx_vlm.utils", reason="needs the peers extra")
    folder = converted(tmp_path, name, recipe)
    peer = mlx_vlm.load_model(folder)
    ours = np.array(load_model(folder, mx.float32)(IDS))
    theirs: Callable[[mx.array], object] = peer.language_model
    assert_same_logits(np.array(theirs(IDS).logits), ours, "text")
