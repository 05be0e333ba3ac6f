"""Make mlx_llama4/doctor/goldens: what `mlx-llama4 doctor` compares with. Run by hand, as
make_goldens.py:

    python -m tests.golden.make_doctor
"""

import tempfile
from pathlib import Path

import numpy as np
import torch

from mlx_llama4.doctor import cases
from mlx_llama4.doctor.goldens import FOLDER
from tests import tiny
from tests.golden.make_goldens import reference_model, text_logits


def goldens(name: str) -> dict[str, np.ndarray]:
    """What doctor keeps of a model: logits of some positions, the winner of every one."""
    weights = cases.MODELS[name].weights()
    with tempfile.TemporaryDirectory() as folder:
        path = tiny.write_checkpoint(Path(folder), cases.MODELS[name].config, weights)
        model = reference_model(path)
    arrays = {"weights": np.array(tiny.fingerprint(weights))}
    for inputs in cases.SEEDS[name]:
        if inputs == "text":
            rows = text_logits(model, cases.text_ids(name))
        else:
            ids, pixels = map(torch.tensor, cases.pictures(name, inputs))
            rows = model(input_ids=ids, pixel_values=pixels).logits[0].numpy()
        arrays[inputs] = rows[cases.kept_positions(len(rows))]
        arrays[f"{inputs} winners"] = rows.argmax(-1).astype(np.uint16)
    return arrays


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    for name in cases.MODELS:
        arrays = goldens(name)
        file = FOLDER / f"{name}.npz"
        np.savez_compressed(file, **arrays)
        print(f"{name}: {file.stat().st_size:,} bytes, logit std {arrays['text'].std():.2f}")
