"""Arguments as a tool's schema means them: 3.0 for an integer is 3, "true" for a truth value True.

Models write such things, and a user would do the same to them. Nothing is lost: a value that fits
its schema stays, and one that cannot be read as the schema's type stays, for `mismatch` to name.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from mlx_llama4.tools.schemas import mismatch

INTEGER = re.compile(r"[-+]?[0-9]{1,40}")
NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
MOST_CHARACTERS = 40
EXACT = 2**53  # beyond this a float may stand for another integer
TRUTHS = {"true": True, "false": False}
# What some models put all arguments into.
WRAPPERS = ("properties", "parameters", "arguments")


def coerced_arguments(
    arguments: Mapping[str, Any], properties: Mapping[str, Any]
) -> dict[str, Any]:
    """A call's arguments for a tool whose parameters have the schemas `properties`."""
    if len(arguments) == 1:
        ((name, inner),) = arguments.items()
        if name in WRAPPERS and name not in properties and isinstance(inner, dict):
            arguments = inner
    return {
        name: coerced(value, properties[name]) if name in properties else value
        for name, value in arguments.items()
    }


def coerced(value: Any, schema: Mapping[str, Any]) -> Any:
    """A JSON value as a schema of `schema_of` means it."""
    if mismatch(value, schema, "") is None:
        return value
    if "anyOf" in schema:
        tried = (coerced(value, option) for option in schema["anyOf"])
        return next((one for one in tried if mismatch(one, schema, "") is None), value)
    if isinstance(value, list) and "items" in schema:
        return [coerced(item, schema["items"]) for item in value]
    if isinstance(value, dict) and "additionalProperties" in schema:
        inner = schema["additionalProperties"]
        return {key: coerced(item, inner) for key, item in value.items()}
    return _scalar(value, schema["type"])


def _scalar(value: Any, kind: str) -> Any:
    if isinstance(value, float) and kind == "integer":
        whole = math.isfinite(value) and value.is_integer() and abs(value) <= EXACT
        return int(value) if whole else value
    if not isinstance(value, str) or len(value) > MOST_CHARACTERS:
        return value
    text = value.strip()
    if kind == "boolean":
        return TRUTHS.get(text.lower(), value)
    if kind in ("integer", "number") and INTEGER.fullmatch(text):
        return int(text)
    if kind == "number" and NUMBER.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return value
