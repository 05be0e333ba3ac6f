"""Fills slots while nothing is computed, such as before the first question of a chat."""

import threading
from collections.abc import Collection
from typing import Any, Protocol

from mlx_llama4.errors import RunError


class Slots(Protocol):
    """One MoE layer's slots: what it takes to fill them."""

    capacity: int  # experts

    def bank(self) -> Any:
        """Allocates the slots, if they are not allocated yet."""
        ...

    def warm(self, rank: int) -> None:
        """Reads the expert of this rank by heat into a free slot, if it is not held yet."""
        ...


class Warming:
    """Reads the hottest experts into free slots, in the background, until stopped.

    It reads one at a time, so that stopping takes no longer than one read. Nothing else may use the
    layers meanwhile.
    """

    def __init__(self, layers: Collection[Slots]):
        self._layers = layers
        self._stopping = threading.Event()
        for layer in layers:
            layer.bank()  # allocated here rather than on the thread
        self._thread = threading.Thread(target=self._run, name="expert warming", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread; returns when nothing is read any more."""
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
                    return  # the step that needs that expert will report it
                except RuntimeError:
                    return  # Python is exiting, and its thread pool takes no more reads
