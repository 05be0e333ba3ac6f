"""Filling slots while nothing is computed: before a first question, say."""

import threading
from collections.abc import Collection
from typing import Any, Protocol

from mlx_llama4.errors import RunError


class Slots(Protocol):
    """One MoE layer's slots, as far as filling them goes."""

    capacity: int  # experts

    def bank(self) -> Any:
        """Make the memory of the slots, if it is not made yet."""
        ...

    def warm(self, rank: int) -> None:
        """Read the expert of this rank by heat into a free slot, if it is not held yet."""
        ...


class Warming:
    """Reads the experts that were hottest into free slots, in the background, until stopped.

    One at a time, so that stopping takes no longer than one read. Nothing else may use the layers
    in between.
    """

    def __init__(self, layers: Collection[Slots]):
        self._layers = layers
        self._stopping = threading.Event()
        for layer in layers:
            layer.bank()  # made here, not on a thread of its own
        self._thread = threading.Thread(target=self._run, name="expert warming", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when nothing is read any more."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        for rank in range(max(layer.capacity for layer in self._layers)):
            for layer in self._layers:
                if self._stopping.is_set():
                    return
                try:
                    layer.warm(rank)
                except RunError:
                    return  # who needs that expert will be told
                except RuntimeError:
                    return  # Python is about to end, and begins no more reads
