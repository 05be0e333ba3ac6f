"""Turn Python's type annotations into JSON schemas of arguments, and check values against them."""

import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

Schema = dict[str, Any]

SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None),
    "array": list, "object": dict,
}  # fmt: skip
IN_WORDS = {
    "string": "a text", "integer": "an integer", "number": "a number", "boolean": "true or false",
    "null": "null", "array": "a list", "object": "an object",
}  # fmt: skip
SUPPORTED = "str, int, float, bool, list[…], dict[str, …], Literal, Enum, Optional or a union"


def schema_of(annotation: Any) -> Schema:
    """The JSON schema of an annotation. Raises TypeError, naming what is supported, for others."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        texts = [text for text in inner[1:] if isinstance(text, str)]
        return schema_of(inner[0]) | ({"description": texts[0]} if texts else {})
    if isinstance(annotation, type) and annotation in SIMPLE:
        return {"type": SIMPLE[annotation]}
    if annotation is list or origin is list:
        return {"type": "array"} | ({"items": schema_of(inner[0])} if inner else {})
    if annotation is dict or (origin is dict and inner[0] is str):
        return {"type": "object"} | ({"additionalProperties": schema_of(inner[1])} if inner else {})
    if origin is Literal:
        return _choice(annotation, list(inner))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _choice(annotation, [member.value for member in annotation])
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(option) for option in inner]}
    raise TypeError(f"the type {shown_type(annotation)}; use {SUPPORTED}")


def shown_type(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def mismatch(value: Any, schema: Mapping[str, Any], name: str) -> str | None:
    """Why a JSON value does not fit a schema from `schema_of`; None if it does."""
    if "anyOf" in schema:
        if all(mismatch(value, option, name) for option in schema["anyOf"]):
            return f"{name} must be {_in_words(schema)}, not {_shortened(value)}"
        return None
    # Python counts True as an integer, and as equal to 1.
    is_other = isinstance(value, bool) and schema["type"] not in ("boolean", "null")
    if is_other or not isinstance(value, PYTHON_TYPES[schema["type"]]):
        return f"{name} must be {_in_words(schema)}, not {_shortened(value)}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{name} must be {_in_words(schema)}, not {_shortened(value)}"
    if isinstance(value, list) and "items" in schema:
        parts = ((f"{name}[{i}]", item, schema["items"]) for i, item in enumerate(value))
    elif isinstance(value, dict) and "additionalProperties" in schema:
        inner = schema["additionalProperties"]
        parts = ((f"{name}[{key!r}]", item, inner) for key, item in value.items())
    else:
        return None
    found = (mismatch(item, inner, part) for part, item, inner in parts)
    return next(filter(None, found), None)


def to_python(value: Any, annotation: Any) -> Any:
    """Convert a JSON value to what a function expects: enum members instead of their values, and
    floats where an integer was given for one.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return to_python(value, inner[0])
    if origin in (Union, types.UnionType):
        fitting = (one for one in inner if mismatch(value, schema_of(one), "") is None)
        return to_python(value, next(fitting))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return annotation(value)
    if annotation is float:
        return float(value)
    if origin is list:
        return [to_python(item, inner[0]) for item in value]
    if origin is dict:
        return {key: to_python(item, inner[1]) for key, item in value.items()}
    return value


def annotations_of(function: Any) -> dict[str, Any]:
    """A function's annotations, resolved. Raises NameError or TypeError for meaningless ones."""
    return typing.get_type_hints(function, include_extras=True)


def _choice(annotation: Any, values: list[Any]) -> Schema:
    kinds = {type(value) for value in values}
    if len(kinds) != 1 or not kinds <= {str, int, bool}:
        raise TypeError(
            f"the type {shown_type(annotation)}, whose values are not all texts or all integers"
        )
    return {"type": SIMPLE[kinds.pop()], "enum": values}


def _in_words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_in_words, schema["anyOf"]))
    if "enum" in schema:
        return "one of " + ", ".join(map(repr, schema["enum"]))
    return IN_WORDS[schema["type"]]


def _shortened(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:60] + "…"
