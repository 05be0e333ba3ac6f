"""A cache with a budget of bytes, which drops the least recently used values first."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LeastRecentlyUsed(Generic[Key, Value]):
    """At most `budget` bytes of values."""

    def __init__(self, budget: int):
        self.budget = budget
        self.nbytes = 0
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """The value, now the most recently used one; None if it is not here."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Key, value: Value, nbytes: int) -> None:
        """Keeps a value, unless it is larger than the whole budget."""
        if key in self._values:
            self.nbytes -= self._values.pop(key)[1]
        if nbytes > self.budget:
            return
        self._values[key] = value, nbytes
        self.nbytes += nbytes
        while self.nbytes > self.budget:
            _, (_, freed) = self._values.popitem(last=False)
            self.nbytes -= freed
