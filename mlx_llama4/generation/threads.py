"""Use a model safely in a thread other than the main one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx


@contextmanager
def model_thread() -> Iterator[None]:
    """Wrap everything that a thread does with a model, from loading it to the thread's end.

    MLX keeps streams for each thread. If a thread ends without this, its streams may abort the
    interpreter at exit. Arrays that a thread has not evaluated cannot be evaluated in another one,
    so load and run a model in the same thread. In the main thread this does nothing.
    """
    try:
        yield
    finally:
        if threading.current_thread() is not threading.main_thread():
            mx.clear_streams()
