"""What a thread other than the main one owes MLX."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx


@contextmanager
def model_thread() -> Iterator[None]:
    """Around everything that a thread of yours does with a model, from loading it to its end.

    MLX keeps streams for each thread. Those of a thread that has ended without this may abort the
    interpreter when it exits. What a thread has not evaluated yet cannot be evaluated elsewhere:
    load a model and run it in one and the same thread. In the main thread this does nothing.
    """
    try:
        yield
    finally:
        if threading.current_thread() is not threading.main_thread():
            mx.clear_streams()
