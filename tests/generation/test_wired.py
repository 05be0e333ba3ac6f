"""Wired memory on Metal, of which here only the calls can be checked."""

from collections.abc import Iterator

import mlx.core as mx
import pytest

from mlx_llama4.generation.wired import wired, wired_memory


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The wired limits that were set, as on a Mac that recommends 96 bytes and had 7."""
    found = [7]

    def set_limit(limit: int) -> int:
        found.append(limit)
        return found[-2]

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    monkeypatch.setattr(mx, "synchronize", lambda: None)
    monkeypatch.setattr(mx, "set_wired_limit", set_limit)
    monkeypatch.setattr(mx, "device_info", lambda device: {"max_recommended_working_set_size": 96})
    return found


@wired
def numbers(count: int) -> Iterator[int]:
    yield from range(count)


def test_wired_while_it_goes_on(limits: list[int]) -> None:
    going = numbers(2)
    assert limits == [7]
    assert next(going) == 0
    assert limits == [7, 96]
    assert list(going) == [1]
    assert limits == [7, 96, 7]


def test_restored_after_an_error_and_when_abandoned(limits: list[int]) -> None:
    with pytest.raises(ZeroDivisionError), wired_memory():
        raise ZeroDivisionError
    going = numbers(2)
    next(going)
    going.close()
    assert limits == [7, 96, 7, 96, 7]


def test_several_at_once_restore_what_was_before_all(limits: list[int]) -> None:
    first, second = numbers(2), numbers(2)
    next(first)
    next(second)
    first.close()
    assert limits == [7, 96]
    second.close()
    assert limits == [7, 96, 7]


def test_nothing_is_set_on_the_cpu(limits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.cpu)
    assert list(numbers(2)) == [0, 1]
    assert limits == [7]
