"""What a test sees of the host's waits for the device."""

from collections.abc import Callable

import mlx.core as mx
import pytest


def recorded_waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From here on, each call that starts computing or waits for it, in order."""
    events: list[str] = []

    def recorded(name: str, call: Callable) -> Callable:
        return lambda *args: events.append(name) or call(*args)

    for name in ("eval", "async_eval", "synchronize"):
        monkeypatch.setattr(mx, name, recorded(name, getattr(mx, name)))
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__array__"):
        if hasattr(mx.array, name):
            monkeypatch.setattr(mx.array, name, recorded(name, getattr(mx.array, name)))
    return events
