"""What the model knows of streamed experts: that something fetches them, and at what cost.
offload/ does the fetching.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass
class StreamingStatistics:
    """Counts since the model was loaded."""

    # Experts that a step of a layer needed, in memory or not. A layer that has all of its experts
    # in memory does not look at which it needs: it counts as many hits as there can have been.
    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    waiting_seconds: float = 0.0  # that computing waited for reads
    read_backs: int = 0  # how often the host waited for a router's output
    read_back_seconds: float = 0.0  # and how long, including the computing that led to it

    def since(self, before: "StreamingStatistics") -> "StreamingStatistics":
        """What was counted after `before`, an earlier copy."""
        return StreamingStatistics(
            **{name: value - getattr(before, name) for name, value in vars(self).items()}
        )


class ExpertCache(Protocol):
    """Fetches the routed experts of a whole model."""

    statistics: StreamingStatistics

    @property
    def heats(self) -> Mapping[int, Any]:
        """Layer → how much each of its experts was used recently (offload/heat.py)."""
        ...

    def warm(self) -> None:
        """Reads experts in the background, until the first step is computed."""
        ...

    def stop_warming(self) -> None: ...
