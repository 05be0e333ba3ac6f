"""Fixtures of the tests of generation."""

import mlx.core as mx
import pytest

from mlx_llama4.chat import Chat, ChatOptions
from mlx_llama4.model.llama4 import Llama4


@pytest.fixture
def row_counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each decode step had."""
    counts: list[int] = []
    call = Llama4.__call__

    def counted(self: Llama4, inputs: mx.array, *args: object, **kwargs: object) -> mx.array:
        if inputs.ndim == 2:
            counts.append(len(inputs))
        return call(self, inputs, *args, **kwargs)

    monkeypatch.setattr(Llama4, "__call__", counted)
    return counts


@pytest.fixture
def chat(opened: Chat) -> Chat:
    """Nothing said yet, and all options at their defaults."""
    opened.options = ChatOptions()
    opened.reset()
    return opened
