"""Limits of depth and size, and values that JSON cannot hold: refused before any library looks."""

import math
from typing import Any

from mlx_llama4.errors import InputError, one_line

MOST_DEPTH = 100  # of values in values; serde_json, which llguidance reads with, stops at 128
MOST_VALUES = 50_000
MOST_CHARACTERS = 100_000  # of one string
MOST_DIGITS = 100  # of one integer


def check_limits(schema: Any) -> None:
    """Raise InputError for what is too deep, too large, or not JSON. Takes circular values, too."""
    left = [(schema, 1)]
    count = 0
    while left:
        value, depth = left.pop()
        count += 1
        if depth > MOST_DEPTH:
            raise InputError(f"the schema is nested more than {MOST_DEPTH} levels deep")
        if count + len(left) > MOST_VALUES:
            raise InputError(f"the schema holds more than {MOST_VALUES:,} values")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise InputError(f"the schema has the key {key!r}, which is not a string")
                _check_text(key)
            left += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list):
            left += [(inner, depth + 1) for inner in value]
        else:
            _check_leaf(value)


def _check_leaf(value: Any) -> None:
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InputError("the schema holds a number that is too large, or NaN")
    elif isinstance(value, int):
        if abs(value) >= 10**MOST_DIGITS:
            raise InputError(f"the schema holds an integer of more than {MOST_DIGITS} digits")
    elif value is not None:
        raise InputError(f"the schema holds a {type(value).__name__}, which is not JSON")


def _check_text(text: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"the schema holds a string of more than {MOST_CHARACTERS:,} characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"the schema holds {one_line(ascii(text), 80)}, which is not Unicode: "
            "half of a surrogate pair"
        ) from None
