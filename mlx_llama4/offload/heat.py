"""How much each expert of a layer was used recently; the coldest expert leaves memory first.

A use counts half as much after HALF_LIFE further tokens, whether they came in one step or one by
one. Heat is saved in the user's cache folder for the next start.
"""

import atexit
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

HALF_LIFE = 64  # tokens; chosen on recorded traces, see docs/performance.md


class Heat:
    """How hot one layer's experts are."""

    def __init__(self, num_experts: int):
        self.values = np.zeros(num_experts)  # float64 [experts]

    def note(self, chosen: np.ndarray, tokens: int) -> None:
        """Adds the experts that `tokens` tokens chose, int [tokens · k], in token order."""
        ages = np.arange(tokens - 1, -1, -1).repeat(len(chosen) // tokens)
        weights = np.exp2(-ages / HALF_LIFE)
        self.values *= 2 ** (-tokens / HALF_LIFE)
        self.values += np.bincount(chosen, weights, len(self.values))

    def coldest_first(self, experts: Iterable[int]) -> list[int]:
        return sorted(experts, key=self.values.__getitem__)


def heat_file(model: str) -> Path:
    """The file that saves the heat of the model with this digest (checkpoint/identity.py)."""
    caches = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    root = Path(os.environ.get("XDG_CACHE_HOME") or caches)
    return root / "mlx-llama4" / "experts" / f"{model}.json"


def carry_over(heats: Mapping[int, Heat], model: str) -> None:
    """Begin with the experts that former runs of this model wanted, and have the next one do so.

    model: its digest.
    """
    try:
        file = heat_file(model)
    except RuntimeError:  # a user without a home
        return
    recall(heats, file)
    atexit.register(remember, heats, file)


def recall(heats: Mapping[int, Heat], file: Path) -> None:
    """Takes over the heat that an earlier run saved. Changes nothing if the file is missing,
    damaged, or of other sizes.
    """
    try:
        stored = json.loads(file.read_bytes())
        values = {layer: np.array(stored[str(layer)], float) for layer in heats}
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return
    fits = all(values[layer].shape == heat.values.shape for layer, heat in heats.items())
    if fits and all(np.isfinite(one).all() and (one >= 0).all() for one in values.values()):
        for layer, heat in heats.items():
            heat.values = values[layer]


def remember(heats: Mapping[int, Heat], file: Path) -> None:
    """Saves the heat for the next run. Fails silently, since nothing depends on it."""
    values = {layer: heat.values.round(6).tolist() for layer, heat in heats.items()}
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(values))
        temporary.replace(file)
