"""Reads the JSON files of a model folder, with errors that name the file and the key."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_llama4.errors import ConfigError
from mlx_llama4.files.foreign import stand_in

# The largest number that a config may hold: sizes are multiplied, and floats hold no more exactly.
MOST_INTEGER = 2**53


def parse_json(data: bytes) -> Any:
    """As json.loads, but raises ValueError for a key that comes twice, too."""
    return json.loads(data, object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"{key!r} comes twice")
        result[key] = value
    return result


def read_json(path: Path, error: type[Exception] = ConfigError) -> dict[str, Any]:
    """The object in a JSON file; raises `error` with one line that names the file."""
    try:
        data = path.read_bytes()
        if (problem := stand_in(path, data)) is not None:
            raise error(problem)
        value = parse_json(data)
    except OSError as failure:
        raise error(f"cannot read {path}: {failure.strerror or failure}") from None
    except (ValueError, RecursionError) as failure:
        raise error(f"{path} is not valid JSON ({failure}); download it again") from None
    if not isinstance(value, dict):
        raise error(f"{path} holds a {type(value).__name__}, not a JSON object")
    return value


class Keys:
    """Typed access to one object of config.json, with errors that name the key."""

    def __init__(self, raw: Mapping[str, Any], where: str):
        self.raw = raw
        self.where = where

    def _value(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        if value is None:
            if default is None:
                raise ConfigError(f"{self.where}: {key} is missing")
            return default
        return value

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self._value(key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # [336, 336], as some write image_size
        if not _is_number(value) or value != int(value):
            raise ConfigError(f"{self.where}: {key} is {value!r}, not a whole number")
        if value < least:
            raise ConfigError(f"{self.where}: {key} is {value}, less than {least}")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if not _is_number(value):
            raise ConfigError(f"{self.where}: {key} is {value!r}, not a number")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if value <= 0:
            raise ConfigError(f"{self.where}: {key} is {value:g}, not above 0")
        return value

    def numbers(self, key: str, default: list[float]) -> list[float]:
        """A list of as many numbers as the default has."""
        values = self._value(key, default)
        if not isinstance(values, list) or len(values) != len(default):
            raise ConfigError(f"{self.where}: {key} is {values!r}, not {len(default)} numbers")
        if not all(map(_is_number, values)):
            raise ConfigError(f"{self.where}: {key} is {values!r}, not {len(default)} numbers")
        return values

    def expect(self, key: str, only: str) -> None:
        """Refuses any value but `only`: variants that no release uses and we do not compute."""
        value = self.raw.get(key)
        if value not in (None, only):
            raise ConfigError(f"{self.where}: {key} is {value!r}; only {only!r} is supported")


def _is_number(value: Any) -> bool:
    """Is it a finite number? Python's JSON reader also accepts NaN and Infinity."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < MOST_INTEGER
    return isinstance(value, float) and math.isfinite(value)
