"""Keep the GPU's memory wired while tokens are generated.

macOS drops GPU memory that is idle for a moment, and takes long to bring it back. Wired memory
stays. This wires as much as Metal recommends, as mlx-lm does.
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
    """Counts running generations, and keeps the limit in bytes from before the first of them."""

    count: int = 0
    before: int = 0
    # A generator that is dropped while this is held ends in the same thread.
    lock: threading.RLock = field(default_factory=threading.RLock)


_holders = _Holders()


@contextmanager
def wired_memory() -> Iterator[None]:
    """Wire memory within this context; does nothing where MLX does not use Metal."""
    if not mx.metal.is_available() or mx.default_device() == mx.cpu:
        yield
        return
    with _holders.lock:
        if _holders.count == 0:
            recommended = int(mx.device_info(mx.gpu)["max_recommended_working_set_size"])
            _holders.before = mx.set_wired_limit(recommended)
        _holders.count += 1
    try:
        yield
    finally:
        with _holders.lock:
            _holders.count -= 1
            if _holders.count == 0:
                mx.synchronize()  # the limit must not change during a computation
                mx.set_wired_limit(_holders.before)


def wired(
    function: Callable[Arguments, Iterator[Item]],
) -> Callable[Arguments, Iterator[Item]]:
    """Decorate a generator function to wire memory from its first item to its end."""

    @wraps(function)
    def generator(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Iterator[Item]:
        with wired_memory():
            yield from function(*args, **kwargs)

    return generator
