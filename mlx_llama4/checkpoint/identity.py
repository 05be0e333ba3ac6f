"""Identifies the model in a folder without reading all of it.

Saved keys and values fit the model that made them, and no other.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mlx_llama4.checkpoint.safetensors import StoredTensor, open_checkpoint
from mlx_llama4.config import load_config
from mlx_llama4.errors import CheckpointError
from mlx_llama4.prompt.chat_template import load_chat_template

SAMPLES = 4  # places in each tensor that are read
SAMPLE_BYTES = 64


@dataclass(frozen=True)
class Identity:
    """Two folders with the same digests hold the same model."""

    name: str  # for people
    model: str  # hexadecimal digest
    tokenizer: str  # hexadecimal digest


def identify(folder: str | Path) -> Identity:
    """The identity of an MLX folder.

    The model's digest covers its config and each tensor's dtype, shape and a few bytes spread over
    it. A fine-tune differs from its base in nearly all tensors; the same weights in other shards
    have the same digest. The tokenizer's digest covers its file and the chat template.
    """
    folder = Path(folder)
    config = load_config(folder)
    model = hashlib.sha256(repr((config.text, config.vision, config.image_token_id)).encode())
    tensors = open_checkpoint(folder).tensors
    try:
        for name in sorted(tensors):
            tensor = tensors[name]
            model.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            model.update(_sample(tensor))
        tokenizer = hashlib.sha256((folder / "tokenizer.json").read_bytes())
    except OSError as failure:
        raise CheckpointError(f"cannot read {failure.filename}: {failure.strerror}") from None
    tokenizer.update(load_chat_template(folder).encode())
    return Identity(folder.resolve().name, model.hexdigest(), tokenizer.hexdigest())


def _sample(tensor: StoredTensor) -> bytes:
    last = max(tensor.nbytes - SAMPLE_BYTES, 0)
    with tensor.file.open("rb", buffering=0) as file:
        samples = []
        for index in range(SAMPLES):
            file.seek(tensor.offset + last * index // (SAMPLES - 1))
            samples.append(file.read(min(SAMPLE_BYTES, tensor.nbytes)))
    return b"".join(samples)
