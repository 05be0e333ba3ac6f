"""Our own reader alone: it reads experts from the disk into memory and computes nothing."""

from pathlib import Path

import numpy as np

from benchmarks.streaming.disk import ExpertRanges, Speed, forget, timed
from mlx_llama4.checkpoint.safetensors import open_checkpoint
from mlx_llama4.config import load_config
from mlx_llama4.offload.expert_store import (
    ExpertStore,
    ExpertTensor,
    Reading,
    expert_tensors,
)
from mlx_llama4.offload.float_types import bits_of


def read_with_store(folder: Path, experts: ExpertRanges, page_cache: bool) -> Speed:
    """Read one expert after the other, as tokens do: each layer waits for its own.

    Floats keep the dtype they are stored in.
    """
    checkpoint = open_checkpoint(folder)
    stored = {tensor.dtype for name, tensor in checkpoint.tensors.items() if "norm" in name}
    layers = expert_tensors(checkpoint, load_config(folder), stored.pop())
    store = ExpertStore(layers, page_cache)
    places = {layer: [_place(tensor) for tensor in tensors] for layer, tensors in layers.items()}
    forget(checkpoint.files)

    def read() -> int:
        nbytes = 0
        for layer, expert in experts:
            reading = Reading()
            store.read(layer, expert, places[layer], reading)
            reading.finish()
            nbytes += reading.nbytes
        return nbytes

    return timed(read)


def _place(tensor: ExpertTensor) -> np.ndarray:
    """Memory for a tensor, touched once as a slot in use is."""
    return np.ones((tensor.rows, tensor.columns), bits_of(tensor.dtype))
