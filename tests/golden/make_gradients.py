"""Make tests/golden/gradients: gradients of a loss by the reference. Run by hand, as
make_goldens.py:

    python -m tests.golden.make_gradients [FOLDER]

The loss is the mean cross-entropy of every next token, in float32 with eager attention. A tensor's
gradient is kept under the name, and in the shape, that the tensor has in the checkpoint. Of the
demo's gradients, which are as large as the demo, demo.npz has some values of each tensor; FOLDER
takes them whole.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.demo_tasks import draw_tasks
from mlx_llama4.config import load_config, load_generation_config
from mlx_llama4.demo.questions import CHECKPOINT
from mlx_llama4.prompt.messages import user_message
from mlx_llama4.prompt.processor import Processor
from tests import tiny
from tests.golden import cases
from tests.golden.make_goldens import HERE, reference_model

# The least distance between the last expert that is chosen and the first that is not, in router
# logits: far above what two orders of summation differ by.
LEAST_MARGIN = 2e-3
LEAST_DEMO_MARGIN = 2e-4
DEMO_TOKENS = 180  # over a border of the demo's chunks of 128


def gradients(name: str) -> dict[str, np.ndarray]:
    """The loss over text and the gradient of every text tensor, and those of the other tensors by
    a loss over pictures; a fingerprint of the weights.
    """
    case, weights = cases.GRADIENTS[name], cases.GRADIENTS[name].weights()
    with tempfile.TemporaryDirectory() as folder:
        model = reference_model(tiny.write_checkpoint(Path(folder), case.config, weights))
    router_logits = _record_router_logits(model)
    arrays = {"weights": np.array(tiny.fingerprint(weights))}
    loss, of_text = _backward(model, cases.gradient_ids())
    k = case.config["text_config"]["num_experts_per_tok"]
    _check_choices(name, router_logits, k)
    arrays |= {"loss": loss} | {key: of_text[key] for key in weights if _is_text(key)}
    for grids in case.images.values():
        router_logits.clear()
        loss, found = _backward(model, tiny.image_ids(grids), tiny.pixels(grids))
        _check_margin(name, router_logits, k)
        arrays |= {"image loss": loss}
        arrays |= {key: found[key] for key in weights if not _is_text(key)}
    assert all(array.any() for array in arrays.values() if array.dtype == np.float32), name
    return arrays


def demo_ids(seed: int) -> np.ndarray:
    """Ids [2, DEMO_TOKENS]: the beginnings of two notes with questions, as the demo reads them."""
    config = load_config(CHECKPOINT)
    processor = Processor.load(CHECKPOINT, config, load_generation_config(CHECKPOINT, {}))
    texts = [task.text for task in draw_tasks(2, seed) if task.kind == "recall"]
    rows = [processor.encode([user_message(text, [])]).ids[:DEMO_TOKENS] for text in texts]
    return np.stack(rows).astype(np.int64)


def demo_gradients() -> dict[str, np.ndarray]:
    """Ids, the loss over them, and the gradient of every text tensor.

    A trained router decides 1,440 times on the way, so some texts hold a choice that is nearly
    even: the first that holds none is taken.
    """
    model = reference_model(CHECKPOINT)
    router_logits = _record_router_logits(model)
    for seed in range(100):
        router_logits.clear()
        ids = demo_ids(seed)
        loss, found = _backward(model, ids)
        try:
            _check_choices("demo", router_logits, 1, LEAST_DEMO_MARGIN)
        except AssertionError:
            continue
        arrays = {key: array for key, array in found.items() if _is_text(key)}
        return {"ids": ids, "loss": loss} | arrays
    raise AssertionError("every text has a choice that is nearly even")


def _samples(gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of every tensor: its norm, its largest value, and its values at cases.sampled_places."""
    arrays = {}
    for key, array in gradients.items():
        if not _is_text(key):
            arrays[key] = array
        else:
            values = array.ravel()[cases.sampled_places(key, array.size)]
            sizes = [np.linalg.norm(array.astype(np.float64)), np.abs(array).max()]
            arrays[key] = np.array([*sizes, *values], np.float32)
    return arrays


def _is_text(tensor: str) -> bool:
    return tensor.startswith("language_model.")


def _backward(
    model: torch.nn.Module, ids: np.ndarray, pixels: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The loss of ids [B, L], and the gradient of each parameter that it depends on."""
    model.zero_grad()
    ids = torch.tensor(ids)
    tiles = None if pixels is None else torch.tensor(pixels)
    logits = model(input_ids=ids, pixel_values=tiles).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    gradients = {
        name: parameter.grad.numpy().copy()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return loss.detach().numpy(), gradients


def _record_router_logits(model: torch.nn.Module) -> list[torch.Tensor]:
    """A list to which each router adds its logits [tokens, experts] when it runs."""
    recorded: list[torch.Tensor] = []
    for name, module in model.named_modules():
        if name.endswith(".router"):
            module.register_forward_hook(lambda _, __, output: recorded.append(output[1]))
    return recorded


def _check_choices(
    name: str, router_logits: list[torch.Tensor], k: int, least: float = LEAST_MARGIN
) -> None:
    _check_margin(name, router_logits, k, least)
    for logits in router_logits:
        chosen = logits.topk(k).indices.unique()
        assert len(chosen) == logits.shape[-1], f"{name}: some expert is never chosen"


def _check_margin(
    name: str, router_logits: list[torch.Tensor], k: int, least: float = LEAST_MARGIN
) -> None:
    ordered = [logits.sort(dim=-1, descending=True).values for logits in router_logits]
    margin = min((values[:, k - 1] - values[:, k]).min().item() for values in ordered)
    print(f"{name}: least margin of a router {margin:.1e}")
    assert margin >= least, f"{name}: draw other ids, a choice is nearly even"


if __name__ == "__main__":
    folder = HERE / "gradients"
    folder.mkdir(exist_ok=True)
    of_demo = demo_gradients()
    if sys.argv[1:]:
        np.savez(Path(sys.argv[1]) / "demo.npz", **of_demo)
    np.savez_compressed(folder / "demo.npz", **_samples(of_demo))
    for name in cases.GRADIENTS:
        arrays = gradients(name)
        np.savez_compressed(folder / f"{name}.npz", **arrays)
        size = (folder / f"{name}.npz").stat().st_size
        print(f"{name}: loss {arrays['loss']:.4f}, {len(arrays)} arrays, {size:,} bytes")
