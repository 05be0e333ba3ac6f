"""What each keyword of JSON Schema must hold, and which keywords are unknown."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any

from mlx_llama4.errors import InputError, one_line

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
MOST_COUNT = 10_000  # items, properties: each becomes a part of the grammar
MOST_LENGTH = 1_000_000  # characters of a string

# Where schemas lie in a schema.
ONE = [
    "not", "if", "then", "else", "contains", "propertyNames", "additionalProperties",
    "additionalItems", "items", "unevaluatedItems", "unevaluatedProperties", "contentSchema",
]  # fmt: skip
LISTS = ["allOf", "anyOf", "oneOf", "prefixItems", "items"]  # items: up to draft 2019-09
NAMED = [
    "properties", "patternProperties", "dependentSchemas", "$defs", "definitions", "dependencies",
]  # fmt: skip

TEXTS = ["$ref", "$dynamicRef", "$recursiveRef", "$id", "$anchor", "pattern", "format"]
COUNTS = [
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
    "minContains", "maxContains",
]  # fmt: skip
NUMBERS = ["minimum", "maximum", "multipleOf"]
BOUNDS = ["exclusiveMinimum", "exclusiveMaximum"]  # in draft 4, whether the bound is excluded
OTHERS = ["type", "enum", "const", "required", "uniqueItems", "dependentRequired"]
ANNOTATIONS = {
    "title", "description", "default", "examples", "example", "readOnly", "writeOnly",
    "deprecated", "$comment", "$schema", "id", "$vocabulary", "$dynamicAnchor",
    "$recursiveAnchor", "contentEncoding", "contentMediaType", "contentSchema", "discriminator",
    "xml", "externalDocs", "enumNames", "enumDescriptions", "markdownDescription",
    "propertyOrdering", "components", "x-guidance",
}  # fmt: skip
ASSERTIONS = {*ONE, *LISTS, *NAMED, *TEXTS, *COUNTS, *NUMBERS, *BOUNDS, *OTHERS} - {
    "$id", "$anchor", "$defs", "definitions", "contentSchema",
}  # fmt: skip
KNOWN = {*ONE, *LISTS, *NAMED, *TEXTS, *COUNTS, *NUMBERS, *BOUNDS, *OTHERS, *ANNOTATIONS}

# By llguidance.
ENFORCED_FORMATS = {
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
}  # fmt: skip
# Of JSON Schema.
OTHER_FORMATS = {
    "idn-email", "idn-hostname", "uri-reference", "iri", "iri-reference", "uri-template",
    "json-pointer", "relative-json-pointer", "regex",
}  # fmt: skip
# Of OpenAPI and Pydantic.
ANNOTATION_FORMATS = {
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "uint", "float",
    "double", "decimal", "binary", "byte", "password", "path", "file-path", "directory-path",
    "json-string", "base64url", "textarea", "color", "phone", "multi-host-uri", "ipv4network",
    "ipv6network", "ipvanyaddress", "ipvanyinterface", "ipvanynetwork",
}  # fmt: skip

Rule = tuple[Callable[[Any], bool], str]


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _are_schemas(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_schema, value))


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


RULES: dict[str, Rule] = {
    **dict.fromkeys(ONE, (_is_schema, "a schema")),
    **dict.fromkeys(
        LISTS,
        (lambda v: _are_schemas(v) and bool(v), "a list of schemas"),
    ),
    **dict.fromkeys(
        NAMED,
        (
            lambda v: isinstance(v, dict) and all(map(_is_schema, v.values())),
            "an object with a schema for each name",
        ),
    ),
    **dict.fromkeys(TEXTS, (lambda v: isinstance(v, str), "a string")),
    **dict.fromkeys(COUNTS, (_is_count, "a whole number from 0")),
    **dict.fromkeys(NUMBERS, (_is_number, "a number")),
    **dict.fromkeys(BOUNDS, (lambda v: _is_number(v) or isinstance(v, bool), "a number")),
    "prefixItems": (
        _are_schemas, "a list of schemas"
    ),
    "items": (
        lambda v: _is_schema(v) or _are_schemas(v),
        "a schema, or a list of schemas",
    ),
    "multipleOf": (lambda v: _is_number(v) and v > 0, "a number above 0"),
    "uniqueItems": (lambda v: isinstance(v, bool), "true or false"),
    "enum": (lambda v: isinstance(v, list), "a list of values"),
    "type": (
        lambda v: isinstance(v, str) or (_are_texts(v) and bool(v)),
        "a type, or a list of types",
    ),
    # Draft 3 and many by hand: "required": true in the property itself.
    "required": (_are_texts, "a list of names"),
    "dependentRequired": (
        lambda v: isinstance(v, dict) and all(map(_are_texts, v.values())),
        "an object with a list of names for each name",
    ),
    "dependencies": (
        lambda v: isinstance(v, dict)
        and all(_is_schema(one) or _are_texts(one) for one in v.values()),
        "an object with a schema or a list of names for each name",
    ),
}  # fmt: skip


def check_keywords(schema: dict[str, Any], where: str) -> Iterator[str]:
    """Yield notes on keywords that are not known, each with the one that was probably meant.

    where: a JSON pointer, for messages. Raises InputError for a value of the wrong kind.
    """
    for keyword, value in schema.items():
        if keyword in RULES:
            fits, what = RULES[keyword]
            if not fits(value):
                raise InputError(f"{where}/{keyword} must be {what}, not {shown(value)}")
            if keyword in COUNTS:
                _check_count(keyword, int(value), where)
        elif keyword not in ANNOTATIONS and not keyword.startswith("x-"):
            yield _unknown(keyword, where)
    for one in _listed(schema.get("type", [])):
        if one not in TYPES:
            meant = _meant(one, TYPES, {"str": "string", "int": "integer", "float": "number",
                "bool": "boolean", "list": "array", "dict": "object", "none": "null"})  # fmt: skip
            raise InputError(f"{where}/type: {shown(one)} is not a type{meant}")


def format_note(name: str, where: str) -> str | None:
    """What to say of a format that is not enforced."""
    if name in OTHER_FORMATS:
        return f"{where}/format: {name!r} is not enforced"
    if name in ENFORCED_FORMATS or name in ANNOTATION_FORMATS:
        return None
    meant = _meant(name, ENFORCED_FORMATS, {"datetime": "date-time"})
    return f"{where}/format: {shown(name)} is not known, and not enforced{meant}"


def shown(value: Any) -> str:
    """A value in a message, as JSON writes the simple ones."""
    simple = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    return simple or ("null" if value is None else one_line(repr(value), 60))


def _check_count(keyword: str, value: int, where: str) -> None:
    most = MOST_LENGTH if keyword.endswith("Length") else MOST_COUNT
    if value > most:
        raise InputError(f"{where}/{keyword} is {value:,}, more than {most:,}")


def _unknown(keyword: str, where: str) -> str:
    said = f"{where}: the keyword {shown(keyword)} is not known, and is ignored"
    if keyword == "nullable":
        return f'{said}; write "type": ["string", "null"], or whichever type it is'
    return said + _meant(keyword, KNOWN, {"types": "type", "schema": "$ref", "values": "enum"})


def _meant(word: str, known: Any, others: dict[str, str]) -> str:
    lowered = {one.lower(): one for one in sorted(known)}
    near = get_close_matches(word.lower(), lowered, n=1, cutoff=0.7)
    meant = others.get(word.lower()) or (lowered[near[0]] if near else None)
    return f"; did you mean {meant!r}?" if meant else ""


def _listed(types: Any) -> list[str]:
    return [types] if isinstance(types, str) else types
