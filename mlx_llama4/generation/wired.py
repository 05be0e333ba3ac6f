"""What the GPU uses stays in memory while tokens are made.

macOS lets go of a GPU's memory that lies idle for a moment, and takes long to bring it back. What
is wired stays; mlx-lm wires as much as Metal recommends, and so does this.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import ParamSpec, TypeVar

import mlx.core as mx

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")


@dataclass
class _Holders:
    """Generations that go on at once; before the first of them the limit was `before` bytes."""

    count: int = 0
    before: int = 0
    # A generator that is dropped while this is held ends in the same thread.
    lock: threading.RLock = field(default_factory=threading.RLock)


_holders = _Holders()


@contextmanager
def wired_memory() -> Iterator[None]:
    """Where MLX does not compute with Metal this does nothing."""
    if not mx.metal.is_available() or mx.default_device() == mx.cpu:
        yield
        return
    with _holders.lock:
        if _holders.count == 0:
            recommended = mx.device_info(mx.gpu)["max_recommended_working_set_size"]
            _holders.before = mx.set_wired_limit(recommended)
        _holders.count += 1
    try:
        yield
    finally:
        with _holders.lock:
            _holders.count -= 1
            if _holders.count == 0:
                mx.synchronize()  # the limit must not change while something is computed
                mx.set_wired_limit(_holders.before)


def wired(
    function: Callable[Arguments, Iterator[Item]],
) -> Callable[Arguments, Iterator[Item]]:
    """A generator function, its memory wired from the first item asked for to the end."""

    @wraps(function)
    def generator(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Iterator[Item]:
        with wired_memory():
            yield from function(*args, **kwargs)

    return generator
