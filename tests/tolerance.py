"""How far two computations of the same thing may differ: as far as doctor lets them."""

import mlx.core as mx
import numpy as np

from mlx_llama4.doctor.goldens import LIMITS


def tolerance(what: str) -> float:
    return LIMITS["GPU" if mx.default_device() == mx.gpu else "CPU", what]


def assert_same_logits(ours: mx.array | np.ndarray, reference: np.ndarray, what: str) -> None:
    """Largest difference within tolerance, and the same winner at every position."""
    ours = np.array(ours, copy=False).reshape(reference.shape)
    difference = np.abs(ours - reference)
    print(f"max difference {difference.max():.2e}, mean {difference.mean():.2e}")
    assert difference.max() <= tolerance(what)
    assert np.array_equal(ours.argmax(-1), reference.argmax(-1))
