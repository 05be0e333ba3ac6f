"""Gradients against the reference implementation's, in float32, and through packed weights."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.model.joined import joined
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.model.moe import MixtureOfExperts
from mlx_llama4.opening import load_model
from mlx_llama4.quantization import Quantization
from tests import tiny
from tests.golden import cases
from tests.unpacked import dequantized

# Of a tensor: the largest difference, divided by the largest value of the reference's gradient.
TOLERANCE = 1e-4

Models = Callable[[str], Llama4]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Llama4]:
    """Name of a model of cases.GRADIENTS → the model in float32, its projections apart."""
    folders: dict[str, Path] = {}

    def load(name: str) -> Llama4:
        if name not in folders:
            case, root = cases.GRADIENTS[name], tmp_path_factory.mktemp(name)
            source = tiny.write_checkpoint(root / "source", case.config, case.weights())
            folders[name] = root / "mlx"
            convert(source, folders[name], Recipe("float32", None))
        return load_model(folders[name], mx.float32, arrange=False)

    return load


def loss_of(model: Llama4, inputs: mx.array, ids: mx.array) -> mx.array:
    """Mean cross-entropy of every next token; inputs: the ids [B, L], or their embeddings."""
    return nn.losses.cross_entropy(model(inputs)[:, :-1], ids[:, 1:], reduction="mean")


def gradients_of(model: Llama4, ids: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
    """The loss, and the gradient of each trainable text tensor."""
    loss, gradients = nn.value_and_grad(model, lambda: loss_of(model, ids, ids))()
    flat = dict(tree_flatten(gradients))
    return loss, {name: flat[name] for name in flat if is_text(name)}


def is_text(name: str) -> bool:
    return name.startswith("language_model.")


def reference_of(name: str) -> dict[str, np.ndarray]:
    """The golden of a model, its gradients under the names of an MLX folder's tensors."""
    path = Path(__file__).parents[1] / "golden" / "gradients" / f"{name}.npz"
    result: dict[str, np.ndarray] = {}
    for key, array in np.load(path).items():
        if key.endswith("experts.gate_up_proj"):  # [experts, in, 2 · out], gate before up
            prefix = key.removesuffix("gate_up_proj")
            gate, up = np.split(array.swapaxes(1, 2), 2, axis=1)
            result |= {f"{prefix}gate_proj.weight": gate, f"{prefix}up_proj.weight": up}
        elif key.endswith("experts.down_proj"):
            result[f"{key}.weight"] = array.swapaxes(1, 2)
        else:
            result[key] = array
    return result


def relative(ours: mx.array, expected: mx.array | np.ndarray) -> float:
    expected = np.array(expected)
    assert ours.shape == expected.shape
    return float(np.abs(np.array(ours) - expected).max() / np.abs(expected).max())


def differences(model: Llama4, name: str) -> dict[str, float]:
    """How far the loss, and the gradient of each text tensor, are from the reference's."""
    reference = reference_of(name)
    loss, ours = gradients_of(model, mx.array(cases.gradient_ids()))
    assert ours.keys() == {key for key in reference if is_text(key)}
    return {key: relative(array, reference[key]) for key, array in (ours | {"loss": loss}).items()}


@pytest.mark.parametrize("name", cases.GRADIENTS)
def test_weights_are_the_reference_s(name: str) -> None:
    assert tiny.fingerprint(cases.GRADIENTS[name].weights()) == reference_of(name)["weights"]


@pytest.mark.parametrize("name", cases.GRADIENTS)
def test_every_text_tensor_has_the_reference_s_gradient(model_of: Models, name: str) -> None:
    """Router, experts, shared experts, attention, norms, embedding and head."""
    found = differences(model_of(name), name)
    worst = max(found, key=found.__getitem__)
    print(f"{len(found)} tensors, worst {found[worst]:.1e}: {worst}")
    assert found[worst] <= TOLERANCE


def test_the_vision_tower_has_the_reference_s_gradients(model_of: Models) -> None:
    """And the projector: through pictures in the prompt."""
    model, reference = model_of("scout"), reference_of("scout")
    [grids] = cases.GRADIENTS["scout"].images.values()
    ids, pixels = tiny.image_ids(grids), tiny.pixels(grids)

    def image_loss() -> mx.array:
        return loss_of(model, model.embed(ids, model.image_features(pixels)), mx.array(ids))

    loss, gradients = nn.value_and_grad(model, image_loss)()
    ours = {key: array for key, array in tree_flatten(gradients) if not is_text(key)}
    parts = ("vision_model.", "multi_modal_projector.")
    assert ours.keys() == {key for key in reference if key.startswith(parts)}
    found = {key: relative(array, reference[key]) for key, array in ours.items()}
    found["image loss"] = relative(loss, reference["image loss"])
    print(f"{len(found)} tensors, worst {max(found.values()):.1e}")
    assert max(found.values()) <= TOLERANCE


def test_a_router_that_is_a_little_off_shows(model_of: Models) -> None:
    model = model_of("scout")
    router = model.language_model.model.layers[3].feed_forward.router
    router.weight = router.weight * 1.001
    assert max(differences(model, "scout").values()) > TOLERANCE


def test_a_score_without_a_gradient_shows(model_of: Models, monkeypatch) -> None:
    """As if the router were not trained: its own gradient is gone, those before it are wrong."""
    choose = MixtureOfExperts._choose

    def without_gradient(self: MixtureOfExperts, logits: mx.array) -> tuple[mx.array, mx.array]:
        scores, experts = choose(self, logits)
        return mx.stop_gradient(scores), experts

    monkeypatch.setattr(MixtureOfExperts, "_choose", without_gradient)
    found = differences(model_of("scout"), "scout")
    assert all(value == 1 for key, value in found.items() if ".router." in key)
    assert found["language_model.model.embed_tokens.weight"] > TOLERANCE


def test_which_expert_is_chosen_needs_to_be_a_constant(model_of: Models, monkeypatch) -> None:
    """MLX looks for a gradient of the chosen numbers unless it is told that there is none."""
    monkeypatch.setattr(mx, "stop_gradient", lambda array: array)
    with pytest.raises(ValueError, match="VJP with respect to indices"):
        gradients_of(model_of("scout"), mx.array(cases.gradient_ids()))


PACKINGS = [Quantization(32, 4), Quantization(64, 8), Quantization(32, 4, "mxfp4")]
# Fewer routed inputs than are sorted by expert, and more (expert_linear.SORT_FROM).
FEW, MANY = 40, 80


@pytest.fixture(scope="module", params=PACKINGS, ids=str)
def packed_folder(
    request, golden_folder: Callable[[str], Path], tmp_path_factory
) -> tuple[Path, Quantization]:
    """A golden model with all packed that is packed; its inner width is no multiple of 64, so
    some tensors stay as they are with the second packing.
    """
    folder = tmp_path_factory.mktemp("packed") / "model"
    convert(golden_folder("scout"), folder, Recipe("float32", request.param))
    return folder, request.param


@pytest.mark.parametrize("arrange", [True, False])
def test_packed_weights_ask_for_no_gradient(
    packed_folder: tuple[Path, Quantization], arrange: bool
) -> None:
    model = load_model(packed_folder[0], mx.float32, arrange=arrange)
    trainable = dict(tree_flatten(model.trainable_parameters()))
    assert not [key for key in trainable if key.endswith((".scales", ".biases"))]
    assert {array.dtype for array in trainable.values()} == {mx.float32}
    assert "language_model.model.layers.0.feed_forward.router.weight" in trainable


def test_packed_projections_ask_for_none_when_they_are_joined() -> None:
    projection = joined([nn.QuantizedLinear(64, 8), nn.QuantizedLinear(64, 16)])
    assert projection.parameters() and not projection.trainable_parameters()


@pytest.mark.parametrize(("length", "arrange"), [(FEW, False), (MANY, True), (MANY, False)])
def test_gradients_flow_through_packed_weights(
    packed_folder: tuple[Path, Quantization], tmp_path: Path, length: int, arrange: bool
) -> None:
    """As through the same weights unpacked: to the embeddings, and to all that is not packed."""
    folder, packing = packed_folder
    packed = load_model(folder, mx.float32, arrange=arrange)
    plain = load_model(dequantized(folder, tmp_path / "plain", packing), mx.float32, arrange=False)
    ids = mx.array(cases.text_ids(length))
    _, ours = gradients_of(packed, ids)
    _, expected = gradients_of(plain, ids)
    found = {key: relative(ours[key], expected[key]) for key in ours if key in expected}
    assert {key.split(".")[-2] for key in found} >= {"router", "norm", "input_layernorm"}
    embeddings = plain.embed(np.array(ids))
    ours, expected = (
        mx.grad(lambda inputs, model=model: loss_of(model, inputs, ids))(embeddings)
        for model in (packed, plain)
    )
    found["embeddings"] = relative(ours, expected)
    print(f"{len(found)} tensors, worst {max(found.values()):.1e}")
    assert mx.isfinite(ours).all() and max(found.values()) <= TOLERANCE
