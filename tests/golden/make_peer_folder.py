"""Make golden/mlx_vlm_4bit: a folder that mlx-vlm converted, and its logits. Run by hand:

    python -m tests.golden.make_peer_folder

in an environment with the `peers` extra (see README.md). mlx-vlm is put right in two places that
are known: the epsilon of the QK norm and, in the vision tower, GELU.
"""

import shutil
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_vlm import convert
from mlx_vlm.utils import load_model

from tests import tiny
from tests.golden import cases, pictures

FOLDER = Path(__file__).parent / "mlx_vlm_4bit"
SIDE_FILES = ("tokenizer.json", "tokenizer_config.json", "processor_config.json")


def put_right() -> None:
    rms_norm = mx.fast.rms_norm
    mx.fast.rms_norm = lambda x, weight, eps, **stream: rms_norm(
        x, weight, 1e-5 if eps == 1e-6 else eps, **stream
    )


def main() -> None:
    mx.set_default_device(mx.cpu)
    config = tiny.config("scout", num_hidden_layers=4)
    with tempfile.TemporaryDirectory() as root:
        source = tiny.write_checkpoint(Path(root) / "source", config, tiny.tensors(config))
        for name in SIDE_FILES:
            shutil.copy(pictures.TOKENIZER_FOLDER / name, source)
        shutil.rmtree(FOLDER, ignore_errors=True)
        convert(str(source), str(FOLDER), quantize=True, q_group_size=32, q_bits=4)
    for path in FOLDER.iterdir():
        if path.name not in ("config.json", "model.safetensors", "model.safetensors.index.json"):
            path.unlink()
    put_right()
    model = load_model(FOLDER)
    model.set_dtype(mx.float32)
    for layer in model.vision_model.model.layers:
        layer.mlp.activation_fn = nn.GELU()
    model.vision_model.vision_adapter.mlp.activation_fn = nn.GELU()
    ids, grids = mx.array(cases.text_ids(60)), [(2, 1)]
    text = model.language_model(ids).logits
    image = model(mx.array(tiny.image_ids(grids)), mx.array(tiny.pixels(grids))).logits
    np.savez_compressed(FOLDER / "logits.npz", text=np.array(text), image=np.array(image))


if __name__ == "__main__":
    main()
