"""What the model knows of experts that are not all in memory: that something else fetches them, and
what that took. offload/ does it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass
class StreamingStatistics:
    """Since the model was loaded.

    hits, misses: experts that a step of a layer needed and that were in memory or not; where all
    are, as many hits as there can have been. waiting_seconds: that computing waited for reads.
    read_backs: how often the host waited for a router's output, and read_back_seconds how long,
    computing what led to it included.
    """

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    waiting_seconds: float = 0.0
    read_backs: int = 0
    read_back_seconds: float = 0.0

    def since(self, before: "StreamingStatistics") -> "StreamingStatistics":
        """What came after an earlier state of the same."""
        return StreamingStatistics(
            **{name: value - getattr(before, name) for name, value in vars(self).items()}
        )


class ExpertCache(Protocol):
    """Fetches the routed experts of a whole model."""

    statistics: StreamingStatistics

    @property
    def heats(self) -> Mapping[int, Any]:
        """How much each expert has been wanted of late, by layer (offload/heat.py)."""
        ...

    def warm(self) -> None:
        """Read experts in the background, until the first step is computed."""
        ...

    def stop_warming(self) -> None: ...
