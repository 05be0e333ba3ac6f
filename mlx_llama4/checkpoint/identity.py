"""Identifies the model in a folder without reading all of it.

Saved keys and values fit the model that made them, and no other.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from mlx_llama4.checkpoint.safetensors import StoredTensor
from mlx_llama4.config import Config
from mlx_llama4.errors import CheckpointError

SAMPLES = 4  # places in each tensor that are read
SAMPLE_BYTES = 64


@dataclass(frozen=True)
class Identity:
    """Two folders with the same digests hold the same model."""

    name: str  # for people
    model: str  # hexadecimal digest
    tokenizer: str  # hexadecimal digest


def model_digest(config: Config, tensors: Mapping[str, StoredTensor]) -> str:
    """A hexadecimal digest of the config and of each tensor's dtype, shape and a few bytes spread
    over it.

    A fine-tune differs from its base in nearly all tensors; the same weights in other shards have
    the same digest. Raises CheckpointError for a file that cannot be read.
    """
    digest = hashlib.sha256(repr((config.text, config.vision, config.image_token_id)).encode())
    try:
        for name in sorted(tensors):
            tensor = tensors[name]
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            digest.update(_sample(tensor))
    except OSError as failure:
        raise CheckpointError(f"cannot read {failure.filename}: {failure.strerror}") from None
    return digest.hexdigest()


def _sample(tensor: StoredTensor) -> bytes:
    last = max(tensor.nbytes - SAMPLE_BYTES, 0)
    with tensor.file.open("rb", buffering=0) as file:
        samples = []
        for index in range(SAMPLES):
            file.seek(tensor.offset + last * index // (SAMPLES - 1))
            samples.append(file.read(min(SAMPLE_BYTES, tensor.nbytes)))
    return b"".join(samples)
