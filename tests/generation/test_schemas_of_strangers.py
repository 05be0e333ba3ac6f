"""Schemas as strangers write them: right, or one clear line; nothing silently wrong, no crash."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mlx_llama4.errors import InputError
from mlx_llama4.generation.grammar import read_schema
from mlx_llama4.generation.json_schema.prepare import prepared
from tests.commands import refused, run_here

BOOLEAN = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
           "additionalProperties": False}  # fmt: skip


def notes_of(schema: Any) -> list[str]:
    return prepared(schema)[1]


def read(tmp_path: Path, schema: Any) -> tuple[Any, list[str]]:
    """Through a file, as the command line reads it, and llguidance's own checks."""
    path = tmp_path / "schema.json"
    path.write_text(schema if isinstance(schema, str) else json.dumps(schema))
    notes: list[str] = []
    return read_schema(path, notes.append), notes


@pytest.mark.parametrize(
    "wrapped",
    [
        {"name": "x", "strict": True, "schema": BOOLEAN},
        {"name": "x", "schema": BOOLEAN},
        {"schema": BOOLEAN},
        {"name": "x", "description": "y", "strict": False, "schema": BOOLEAN},
        {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": BOOLEAN}},
        {"type": "json_schema", "name": "x", "schema": BOOLEAN},
        {"type": "json_schema", "json_schema": BOOLEAN},
    ],
)
def test_wrappers_of_the_openai_interface(tmp_path: Path, wrapped: Any) -> None:
    assert read(tmp_path, wrapped) == (BOOLEAN, [])


def test_a_wrapper_without_a_schema() -> None:
    for empty in ({"type": "json_schema"}, {"type": "json_schema", "json_schema": 3}):
        with pytest.raises(InputError, match="needs a schema beside it"):
            prepared(empty)


@pytest.mark.parametrize(
    ("schema", "note"),
    [
        ({"typ": "boolean"}, "'typ' is not known, and is ignored; did you mean 'type'?"),
        ({"type": "object", "propertys": {}}, "did you mean 'properties'?"),
        ({"type": "array", "items": {"minimun": 3}}, "#/items: the keyword 'minimun'"),
        ({"anyOf": [{"type": "string", "maxLenght": 3}]}, "#/anyOf/0: the keyword 'maxLenght'"),
        ({"type": "string", "format": "datetime"}, "did you mean 'date-time'?"),
        ({"type": "string", "format": "iri"}, "'iri' is not enforced"),
        ({"type": "string", "nullable": True}, "'nullable' is not known"),
        ({}, "the schema constrains nothing"),
        ({"title": "All", "description": "of it"}, "the schema constrains nothing"),
        ({"typ": "boolean"}, "the schema constrains nothing"),
    ],
)
def test_what_has_no_effect_is_said(schema: Any, note: str) -> None:
    assert any(note in one for one in notes_of(schema)), notes_of(schema)


@pytest.mark.parametrize(
    "name", ["int64", "password", "binary", "byte", "path", "float", "uint", "color"]
)
def test_formats_that_only_annotate(tmp_path: Path, name: str) -> None:
    for kind in ("string", "integer"):
        schema, notes = read(tmp_path, {"type": kind, "format": name, "title": name})
        assert schema == {"type": kind, "title": name} and notes == []


def test_formats_that_are_enforced_stay() -> None:
    schema = {"type": "object", "properties": {"on": {"type": "string", "format": "date"}}}
    assert prepared(schema) == (schema, [])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"minimum": 0, "exclusiveMinimum": True}, {"exclusiveMinimum": 0}),
        ({"minimum": 0, "exclusiveMinimum": False}, {"minimum": 0}),
        ({"maximum": 9, "exclusiveMaximum": True}, {"exclusiveMaximum": 9}),
        ({"exclusiveMaximum": True}, {}),
    ],
)
def test_bounds_of_draft_4(written: Any, meant: Any) -> None:
    assert prepared({"type": "integer"} | written)[0] == {"type": "integer"} | meant


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"const": -(2**63)}, "#/const: -9223372036854775808"),
        ({"type": "integer", "minimum": -(2**63), "maximum": -(2**63)}, "#/maximum: -92233"),
        ({"const": 12345678901234567890}, "#/const"),
        ({"enum": [1, {"a": [2**53 + 1]}]}, "#/enum: 9007199254740993"),
        ({"properties": {"id": {"enum": [1234567890123456789]}}}, "#/properties/id/enum"),
        ({"type": "integer", "minimum": 2**53 + 1}, "#/minimum"),
        ({"type": "integer", "exclusiveMaximum": -(2**60)}, "#/exclusiveMaximum"),
        ({"items": [{"const": 1e300}]}, "#/items/0/const"),
    ],
)
def test_numbers_that_would_be_rounded(schema: Any, where: str) -> None:
    with pytest.raises(
        InputError, match="is beyond 2\\^53, and cannot be held to exactly"
    ) as caught:
        prepared(schema)
    assert str(caught.value).startswith(where)


def test_bounds_of_int64(tmp_path: Path) -> None:
    bounds = {"minimum": -(2**63), "maximum": 2**63 - 1}
    schema, notes = read(tmp_path, {"type": "integer", "format": "int64"} | bounds)
    assert schema == {"type": "integer", "minimum": -(2**53), "maximum": 2**53}
    assert "integers are held to ±2^53" in notes[0]
    assert notes_of({"enum": [2**53, -(2**53)]}) == []


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            {"oneOf": [{"type": "object"}, {"properties": {"b": {}}}]},
            "branches of oneOf may",
        ),
        (
            {"type": "string", "pattern": "^(?!a).*$"},
            "and look-behind, is not supported",
        ),
        ({"type": "strin"}, "'strin' is not a type; did you mean 'string'?"),
        ({"type": "array", "minItems": 2**40}, "more than 10,000"),
        ({"type": "string", "maxLength": 2**70}, "more than 1,000,000"),
        ({"properties": []}, "#/properties must be an object with a schema for each name"),
        ({"properties": {"a": {"required": True}}}, "must be a list of names, not true"),
        ({"multipleOf": 0}, "a number above 0"),
        ({"enum": 3}, "#/enum must be a list of values, not 3"),
        ([], "a schema must be a JSON object"),
        ("[1]", "a schema must be a JSON object"),
        ('{"const": 1e999}', "too large, or NaN"),
        ('{"const": NaN}', "too large, or NaN"),
        ('{"enum": ["\\ud800"]}', "half of a surrogate pair"),
    ],
)
def test_refused_in_one_line(tmp_path: Path, schema: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, schema)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and "coerce_one_of" not in str(caught.value)


SMALLEST = {"type": "integer", "minimum": -(2**63), "maximum": -(2**63)}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/foo", "foo": {"const": -(2**63)}},
        {"$ref": "#/default", "default": SMALLEST},
        {"$ref": "#/x-a/b", "x-a": {"b": SMALLEST}},
        {"$ref": "#/examples/0", "examples": [{"const": -(2**63)}]},
        {"$id": "http://a.b/", "$ref": "http://a.b/#/foo", "foo": SMALLEST},
        {"$ref": "#/$defs/a/b", "$defs": {"a": {"b": SMALLEST}}},
        {"$ref": "#/enum/0", "enum": [SMALLEST]},
        {"$ref": "#/components/schemas/a", "components": {"schemas": {"a": SMALLEST}}},
        {"$ref": "#/components/a", "components": {"a": SMALLEST}},
    ],
)
def test_references_to_what_is_no_schema(schema: Any, tmp_path: Path) -> None:
    """Unchecked, each of these killed the process in llguidance."""
    with pytest.raises(InputError):
        read(tmp_path, schema)


def test_references_to_schemas_of_openapi(tmp_path: Path) -> None:
    bounded = {"type": "integer", "maximum": 3, "exclusiveMaximum": True}
    schema = {"$ref": "#/components/schemas/a", "components": {"schemas": {"a": bounded}}}
    changed, notes = read(tmp_path, schema)
    assert changed["components"]["schemas"]["a"] == {"type": "integer", "exclusiveMaximum": 3}
    assert notes == []


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"type": "array", "uniqueItems": False}, {"type": "array"}),
        ({"type": "array", "minItems": 2.0}, {"type": "array", "minItems": 2}),
        ({"type": "array", "minContains": 2}, {"type": "array"}),
        ({"type": "string", "then": {"const": "a"}}, {"type": "string"}),
        ({"type": "string", "if": {"const": "a"}}, {"type": "string"}),
    ],
)
def test_keywords_without_effect_are_left_out(written: Any, meant: Any, tmp_path: Path) -> None:
    assert read(tmp_path, written)[0] == meant


def test_an_id_beside_a_reference() -> None:
    """Draft 7 ignores what stands beside $ref; later drafts do not."""
    schema = {"properties": {"a": {"$id": "http://a.b/", "$ref": "#/$defs/a"}}}
    with pytest.raises(InputError, match="#/properties/a has \\$id beside"):
        prepared(schema)


@pytest.mark.parametrize("keyword", ["items", "not", "additionalProperties"])
@pytest.mark.parametrize("depth", [101, 300, 5000])
def test_depth(tmp_path: Path, depth: int, keyword: str) -> None:
    text = f'{{"{keyword}": ' * depth + "true" + "}" * depth
    with pytest.raises(InputError, match=r"levels deep|not valid JSON"):
        read(tmp_path, text)


def test_size() -> None:
    with pytest.raises(InputError, match="more than 50,000 values"):
        prepared({"enum": list(range(60_000))})
    circular: dict[str, Any] = {}
    circular["not"] = circular
    with pytest.raises(InputError, match="levels deep"):
        prepared(circular)


def test_the_schema_given_stays_as_it_was() -> None:
    schema = {"anyOf": [{"format": "byte"}], "properties": {"a": {"exclusiveMinimum": False}},
              "x-guidance": {"coerce_one_of": True}}  # fmt: skip
    before = json.dumps(schema)
    changed, _ = prepared(schema)
    assert json.dumps(schema) == before
    assert changed == {"anyOf": [{}], "properties": {"a": {}}}


def test_the_command_says_notes_and_refusals(demo_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    asked = ("ask", "Is it so?", "-m", demo_folder, "--json-schema", path)
    path.write_text(json.dumps({"name": "x", "schema": {"type": "boolean", "titel": "T"}}))
    result = run_here(*asked)
    assert json.loads(result.stdout) in (True, False)
    assert "'titel' is not known, and is ignored; did you mean 'title'?" in result.stderr
    path.write_text('{"const": 12345678901234567890}')
    assert "cannot be held to exactly; let it be a string" in refused(*asked)


def test_a_schema_on_the_command_line(demo_folder: Path) -> None:
    asked = ("ask", "Is it so?", "-m", demo_folder, "--json-schema")
    inline = '{"$id": "https://example.com//a", "type": "boolean"}'
    assert json.loads(run_here(*asked, inline).stdout) in (True, False)
    assert "the schema is not valid JSON" in refused(*asked, '{"type": ')
    assert "the schema: #/type: 'thing' is not a type" in refused(*asked, ' {"type": "thing"}')


WORDS = [
    "type", "object", "array", "string", "integer", "properties", "items", "enum", "const",
    "not", "anyOf", "oneOf", "allOf", "$ref", "#", "#/$defs/a", "$defs", "pattern", "(",
    "^a*$", "format", "date", "minimum", "maxLength", "required", "if", "then", "\ud800",
    "\0", "é", "default", "#/default", "x", "#/x", "#/x/const",
]  # fmt: skip


def any_json(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(8 if depth < 4 else 5)
    if kind < 2:
        return chance.choice(WORDS)
    if kind == 2:
        return chance.choice([0, -1, 1, 7, 2**31, 2**53, 2**63, -(2**63), 1.5, 1e300, 10**30])
    if kind < 5:
        return chance.choice([True, False, None])
    if kind == 5:
        return [any_json(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(WORDS): any_json(chance, depth + 1) for _ in range(chance.randrange(5))}


def fuzz(count: int, seed: int) -> None:
    from mlx_llama4.generation.grammar import _check, _source

    chance = random.Random(seed)
    compiled = 0
    for _ in range(count):
        schema = any_json(chance)
        if chance.random() < 0.5:
            schema = {"type": "object", "properties": {"a": schema}}
        try:
            _check(_source(prepared(schema)[0]))
            compiled += 1
        except InputError as refusal:
            assert str(refusal).isprintable() and len(str(refusal)) < 2000
    assert compiled


def test_random_schemas() -> None:
    fuzz(150, 0)


@pytest.mark.slow
def test_many_random_schemas() -> None:
    fuzz(3000, 1)
