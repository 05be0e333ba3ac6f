"""Make tests/golden/gradients: gradients of a loss by the reference. Run by hand, as
make_goldens.py:

    python -m tests.golden.make_gradients

The loss is the mean cross-entropy of every next token, in float32 with eager attention. A tensor's
gradient is kept under the name, and in the shape, that the tensor has in the checkpoint.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from tests import tiny
from tests.golden import cases
from tests.golden.make_goldens import HERE, reference_model

# The least distance between the last expert that is chosen and the first that is not, in router
# logits: far above what two orders of summation differ by.
LEAST_MARGIN = 2e-3


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


def _check_choices(name: str, router_logits: list[torch.Tensor], k: int) -> None:
    _check_margin(name, router_logits, k)
    for logits in router_logits:
        chosen = logits.topk(k).indices.unique()
        assert len(chosen) == logits.shape[-1], f"{name}: some expert is never chosen"


def _check_margin(name: str, router_logits: list[torch.Tensor], k: int) -> None:
    ordered = [logits.sort(dim=-1, descending=True).values for logits in router_logits]
    margin = min((values[:, k - 1] - values[:, k]).min().item() for values in ordered)
    print(f"{name}: least margin of a router {margin:.1e}")
    assert margin >= LEAST_MARGIN, f"{name}: draw other ids, a choice is nearly even"


if __name__ == "__main__":
    folder = HERE / "gradients"
    folder.mkdir(exist_ok=True)
    for name in cases.GRADIENTS:
        arrays = gradients(name)
        np.savez_compressed(folder / f"{name}.npz", **arrays)
        size = (folder / f"{name}.npz").stat().st_size
        print(f"{name}: loss {arrays['loss']:.4f}, {len(arrays)} arrays, {size:,} bytes")
