"""A stranger's JSON schema → one that llguidance enforces as JSON Schema means it, with notes."""

from collections.abc import Iterator
from typing import Any

from mlx_llama4.errors import InputError
from mlx_llama4.generation.json_schema.keywords import (
    ANNOTATIONS,
    ASSERTIONS,
    COUNTS,
    ENFORCED_FORMATS,
    KNOWN,
    LISTS,
    NAMED,
    ONE,
    check_keywords,
    format_note,
)
from mlx_llama4.generation.json_schema.limits import check_limits

EXACT = 2**53  # llguidance keeps numbers as floats, which hold every integer up to here


def prepared(schema: Any) -> tuple[dict[str, Any], list[str]]:
    """The schema to enforce, and what the user should know of it.

    schema: parsed JSON, perhaps as the OpenAI interface wraps it: {"name", "strict", "schema"}, or
    {"type": "json_schema", …}. Raises InputError for what is not a schema, or cannot be enforced
    exactly.
    """
    check_limits(schema)
    if not isinstance(schema, dict):
        raise InputError("a schema must be a JSON object")
    schema = _unwrapped(schema)
    notes: list[str] = []
    result = _rewritten(schema, "#", notes)
    if not any(keyword in ASSERTIONS for keyword in result):
        notes.append("the schema constrains nothing: any JSON value fits it")
    return result, notes


def _unwrapped(schema: dict[str, Any]) -> dict[str, Any]:
    """What is inside the wrappers of the OpenAI interface."""
    if schema.get("type") == "json_schema":
        inner = schema.get("json_schema", schema.get("schema"))
        if not isinstance(inner, dict):
            raise InputError('"type": "json_schema" needs a schema beside it, under "json_schema"')
        return _unwrapped(inner)
    wrapper = {"name", "strict", "schema", "description"}
    if isinstance(schema.get("schema"), dict) and schema.keys() <= wrapper:
        return schema["schema"]
    return schema


def _rewritten(schema: dict[str, Any], where: str, notes: list[str]) -> dict[str, Any]:
    notes += check_keywords(schema, where)
    if where != "#" and "$ref" in schema and "$id" in schema:
        raise InputError(f"{where} has $id beside $ref, whose meaning depends on the draft")
    result = _enforced(schema)
    if isinstance(schemas := _openapi_schemas(schema), dict):
        inner = _rewritten({"$defs": schemas}, f"{where}/components", notes)
        result["components"] = {"schemas": inner["$defs"]}
    for key in ("const", "enum"):
        if key in schema:
            _check_exact(schema[key], f"{where}/{key}")
    _rewrite_bounds(result, where, notes)
    if (name := schema.get("format")) is not None and name not in ENFORCED_FORMATS:
        del result["format"]
        notes += filter(None, [format_note(name, where)])
    for where_in, inner, place in _inner_schemas(result, where):
        rewritten = _rewritten(inner, place, notes)
        if isinstance(where_in, str):
            result[where_in] = rewritten
        else:
            outer, part = where_in
            if result[outer] is schema[outer]:
                result[outer] = type(schema[outer])(schema[outer])  # a copy, to be changed
            result[outer][part] = rewritten
    return result


def _enforced(schema: dict[str, Any]) -> dict[str, Any]:
    """Leave out what has no effect, and what a $ref could reach though nobody checked it.

    x-guidance goes, too: llguidance's own options would let an answer through that does not fit.
    """
    result = {
        key: int(value) if key in COUNTS else value
        for key, value in schema.items()
        if (key in KNOWN - ANNOTATIONS or key == "contentSchema") or _is_leaf(value)
    }
    result.pop("x-guidance", None)
    idle = [] if result.get("uniqueItems") else ["uniqueItems"]
    if "contains" not in result:
        idle += ["minContains", "maxContains"]
    if "if" not in result or not ("then" in result or "else" in result):
        idle += ["if", "then", "else"]
    return {key: value for key, value in result.items() if key not in idle}


def _openapi_schemas(schema: dict[str, Any]) -> Any:
    """Where OpenAPI's documents keep what "#/components/schemas/NAME" refers to."""
    components = schema.get("components")
    return components.get("schemas") if isinstance(components, dict) else None


def _is_leaf(value: Any) -> bool:
    return not isinstance(value, dict | list)


def _inner_schemas(
    schema: dict[str, Any], where: str
) -> Iterator[tuple[str | tuple[str, Any], dict[str, Any], str]]:
    """Each schema in a schema: where it lies, the schema, and a JSON pointer for messages."""
    for key in ONE:
        if isinstance(schema.get(key), dict):
            yield key, schema[key], f"{where}/{key}"
    for key in LISTS:
        if isinstance(parts := schema.get(key), list):
            for index, part in enumerate(parts):
                if isinstance(part, dict):
                    yield (key, index), part, f"{where}/{key}/{index}"
    for key in NAMED:
        if isinstance(named := schema.get(key), dict):
            for name, part in named.items():
                if isinstance(part, dict):
                    yield (key, name), part, f"{where}/{key}/{name}"


def _check_exact(value: Any, where: str) -> None:
    """Raises InputError for an integer, at any depth, that llguidance would round."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += one.values()
        elif isinstance(one, list):
            left += one
        elif _is_number(one) and abs(one) > EXACT:
            raise InputError(
                f"{where}: {one} is beyond 2^53, and cannot be held to exactly; let it be a string"
            )


def _rewrite_bounds(schema: dict[str, Any], where: str, notes: list[str]) -> None:
    """Draft 4's booleans become numbers; bounds too wide for exact integers become narrower."""
    for exclusive, inclusive in (
        ("exclusiveMinimum", "minimum"),
        ("exclusiveMaximum", "maximum"),
    ):
        if isinstance(said := schema.get(exclusive), bool):
            del schema[exclusive]
            if said and inclusive in schema:
                schema[exclusive] = schema.pop(inclusive)
    narrowed = False
    for key, sign in (("minimum", -1), ("exclusiveMinimum", -1), ("maximum", 1),
                      ("exclusiveMaximum", 1)):  # fmt: skip
        value = schema.get(key)
        if value is None or abs(value) <= EXACT:
            continue
        if value * sign < 0:
            raise InputError(
                f"{where}/{key}: {value} is beyond 2^53, and cannot be held to exactly"
            )
        schema[key], narrowed = sign * EXACT, True
    if narrowed:
        notes.append(f"{where}: integers are held to ±2^53, which is narrower than its bounds")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
