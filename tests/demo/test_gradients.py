"""Gradients of the demo in float32 against the reference's, over texts of two chunks."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.run import convert
from mlx_llama4.demo.questions import CHECKPOINT
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.opening import load_model
from mlx_llama4.training.loss import Batch, supervised_loss
from tests.golden.cases import sampled_places

GOLDEN = Path(__file__).parents[1] / "golden" / "gradients" / "demo.npz"
# Of a tensor: the largest difference, divided by the largest value of the reference's gradient.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Llama4:
    folder = tmp_path_factory.mktemp("demo") / "demo-float32"
    convert(CHECKPOINT, folder, Recipe("float32", None))
    return load_model(folder, mx.float32, arrange=False)


def by_the_checkpoint_s_names(gradients: dict[str, mx.array]) -> dict[str, np.ndarray]:
    """Expert tensors transposed, gate before up in one."""
    found = {key: np.array(array) for key, array in gradients.items()}
    for key in [key for key in found if key.endswith("experts.gate_proj.weight")]:
        prefix = key.removesuffix("gate_proj.weight")
        gate, up, down = (found.pop(f"{prefix}{n}_proj.weight") for n in ("gate", "up", "down"))
        found[f"{prefix}gate_up_proj"] = np.concatenate([gate, up], axis=1).swapaxes(1, 2)
        found[f"{prefix}down_proj"] = down.swapaxes(1, 2)
    return found


@pytest.mark.parametrize("recompute", [False, True])
def test_every_text_tensor_has_the_reference_s_gradient(model: Llama4, recompute: bool) -> None:
    """Through the loss that training uses. The golden has 200 values of each tensor, its norm and
    its largest value.
    """
    golden = dict(np.load(GOLDEN))
    ids, loss = golden.pop("ids"), golden.pop("loss")
    supervised = np.ones(ids.shape, bool)
    supervised[:, 0] = False

    def mean(model: Llama4) -> mx.array:
        total, count = supervised_loss(model, Batch(ids, supervised), recompute=recompute)
        return total / count

    ours, gradients = nn.value_and_grad(model, mean)(model)
    flat = dict(tree_flatten({"language_model": gradients["language_model"]}))
    found = by_the_checkpoint_s_names(flat)
    assert found.keys() == golden.keys()
    worst = {"loss": abs(ours.item() - loss) / loss}
    for key, (norm, largest, *values) in golden.items():
        sampled = found[key].ravel()[sampled_places(key, found[key].size)]
        worst[key] = np.abs(sampled - np.array(values)).max() / largest
        assert np.linalg.norm(found[key].astype(np.float64)) == pytest.approx(norm, rel=TOLERANCE)
    print(f"{len(golden)} tensors, worst {max(worst.values()):.1e}: {max(worst, key=worst.get)}")
    assert max(worst.values()) <= TOLERANCE
