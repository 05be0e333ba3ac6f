"""A tiny model that may be changed, and batches for it."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.opening import load_model
from mlx_llama4.training.loss import Batch
from tests import tiny

PADDING = 303


@pytest.fixture
def model(golden_folder: Callable[[str], Path]) -> Llama4:
    """Scout in small, in float32, its projections apart; each test's own."""
    return load_model(golden_folder("scout"), mx.float32, arrange=False)


@pytest.fixture
def batch() -> Batch:
    """Two rows over two chunk borders, the second shorter; answers here and there."""
    ids = np.concatenate([tiny.text_ids(70, seed) for seed in (1, 2)])
    ids[1, 50:] = PADDING
    supervised = np.zeros(ids.shape, bool)
    supervised[0, [5, 6, 7, 30, 31, 32, 33, 69]] = True
    supervised[1, 20:50] = True
    return Batch(ids, supervised)


@pytest.fixture
def picture_batch() -> Batch:
    """One row with two pictures, of one tile and of two."""
    grids = [(1, 1), (1, 2)]
    ids = tiny.image_ids(grids)
    supervised = np.zeros(ids.shape, bool)
    supervised[0, -6:] = True
    return Batch(ids, supervised, tiny.pixels(grids))
