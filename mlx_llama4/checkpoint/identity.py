"""Which model a folder holds, told without reading all of it: keys and values fit no other."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mlx_llama4.checkpoint.safetensors import StoredTensor, open_checkpoint
from mlx_llama4.config import load_config
from mlx_llama4.errors import CheckpointError
from mlx_llama4.prompt.chat_template import load_chat_template

SAMPLES = 4  # places at which each tensor is looked at
SAMPLE_BYTES = 64


@dataclass(frozen=True)
class Identity:
    """name: for people. model, tokenizer: hexadecimal digests."""

    name: str
    model: str
    tokenizer: str


def identify(folder: str | Path) -> Identity:
    """The identity of an MLX folder.

    Of the model: config, and of each tensor its type, shape and a few bytes, spread over it. A
    fine-tune differs from its base in nearly all of them; the same weights in other shards do
    not differ. Of the tokenizer: its file, and the chat template.
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
