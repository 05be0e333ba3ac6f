"""Random JSON schemas, small enough that a model which rambles still comes to an end."""

import random
from typing import Any

Schema = dict[str, Any]

NAMES = ("shape", "name", "é", 'a "b"', "x", "y z")
PATTERNS = ("^[a-c]{1,4}$", "^\\d{2}-\\d{3}$", "^(red|green|blue)$", "^[A-Z][a-z]{0,5}$")
VALUES = ("red", "blue", "", 'q"\\', "grün 🦙", 7, -3, 1.5, True, None)


def random_schema(seed: int, depth: int = 2) -> Schema:
    """An object at the top, in which all kinds may be nested, some of them by reference."""
    choose = random.Random(seed)
    definitions = {name: choose.choice([_number, _string, _fixed])(choose) for name in ("d0", "d1")}
    return _object(choose, depth) | {"$defs": definitions}


def _any(choose: random.Random, depth: int) -> Schema:
    nested = [_object, _array, _any_of] if depth else []
    kind = choose.choice([_leaf, _leaf, *nested])
    return kind(choose, depth - 1) if kind is not _leaf else _leaf(choose)


def _object(choose: random.Random, depth: int) -> Schema:
    names = choose.sample(NAMES, choose.randint(1, 3))
    return {
        "type": "object",
        "properties": {name: _any(choose, depth) for name in names},
        "required": [name for name in names if choose.random() < 0.6],
        "additionalProperties": False,
    }


def _array(choose: random.Random, depth: int) -> Schema:
    least = choose.randint(0, 2)
    most = least + choose.randint(0, 2)
    return {"type": "array", "items": _any(choose, depth), "minItems": least, "maxItems": most}


def _any_of(choose: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(choose, depth) for _ in range(choose.randint(1, 3))]}


def _leaf(choose: random.Random) -> Schema:
    return choose.choice([_number, _string, _fixed, _reference])(choose)


def _number(choose: random.Random) -> Schema:
    low = choose.randint(-20, 20)
    high = low + choose.randint(1, 300)
    kind = choose.choice(["integer", "number"])
    bounds = choose.choice([("minimum", "maximum"), ("exclusiveMinimum", "maximum")])
    return {"type": kind, bounds[0]: low, bounds[1]: high}


def _string(choose: random.Random) -> Schema:
    if choose.random() < 0.1:
        return {"type": "string"}
    if choose.random() < 0.5:
        return {"type": "string", "pattern": choose.choice(PATTERNS)}
    return {"type": "string", "minLength": choose.randint(0, 3), "maxLength": choose.randint(3, 12)}


def _fixed(choose: random.Random) -> Schema:
    return choose.choice(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"const": choose.choice(VALUES)},
            {"enum": choose.sample(VALUES, choose.randint(1, 4))},
        ]
    )


def _reference(choose: random.Random) -> Schema:
    return {"$ref": f"#/$defs/d{choose.randint(0, 1)}"}
