"""Counts rows of zeros in what is read of a checkpoint.

A download may leave a hole of zeros in a file of the right length. Nothing else tells where the
sums of the files are not known: zeros are numbers like others, and the model only answers worse.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlx_llama4.checkpoint.safetensors import Checkpoint, StoredTensor


@dataclass(frozen=True)
class WatchedCheckpoint(Checkpoint):
    """A checkpoint that notes rows of zeros as it is read, by one thread."""

    zero_rows: dict[str, int] = field(default_factory=dict)  # tensor in its file → how many
    files_of: dict[str, Path] = field(default_factory=dict)

    def read(self, tensor: StoredTensor, start: int = 0, stop: int | None = None) -> np.ndarray:
        data = super().read(tensor, start, stop)
        if len(tensor.shape) > 1 and (count := count_zero_rows(data, tensor)):
            self.zero_rows[tensor.name] = self.zero_rows.get(tensor.name, 0) + count
            self.files_of[tensor.name] = tensor.file
        return data


def count_zero_rows(data: np.ndarray, tensor: StoredTensor) -> int:
    """How many rows, along the last axis, are zero throughout. data: bytes of whole rows, uint8."""
    row_bytes = tensor.nbytes // max(1, int(np.prod(tensor.shape[:-1])))
    if not row_bytes or not len(data):
        return 0
    rows = data.reshape(-1, row_bytes)
    # Few rows begin with zeros, so that nearly none is looked at whole.
    suspects = rows[~rows[:, : min(row_bytes, 16)].any(axis=1)]
    return int((~suspects.any(axis=1)).sum())
