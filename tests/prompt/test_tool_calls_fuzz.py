"""Good, hostile and damaged calls of tools, thousands of each: what is taken is as it was written,
and Python is asked to do nothing for it.
"""

import ast
import json
import random
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mlx_llama4.prompt.replies import ToolCall, parse_reply
from tests.proofs import scaled

NAMES = ("get_weather", "get_user_info", "f", "g", "größe", "maps.find-place")

HOSTILE = (
    "g()", "__import__('os').system('touch owned')", "f.__globals__", "os.environ['HOME']",
    "lambda: 0", "f'{g()}'", "f\"{__import__('os')}\"", "[x for x in (1, 2)]",
    "{k: 1 for k in 'ab'}", "(y := 1)", "*[1]", "**{'a': 1}", "1 if 1 else 2", "not 1", "1 + 1",
    "2 ** 99999999", "'a' * 10 ** 10", "[1][0]", "{1}", "{**{'a': 1}}", "await g()", "yield 1",
    "...", "b'x'", "f'x'", "'a' + 'b'", "`id`", "9" * 300, "1e9999", "-" * 300 + "1",
    "[" * 300 + "]" * 300, "(" * 300 + "1" + ")" * 300, "Тrue", "\uff34rue",
    "open('/etc/passwd')", "exec('1')", "eval('1')", "$(id)", "<b>", "0o18", "1__000", "x",
    "'\\ud800'", "undefined", "Infinity", "-Infinity", "NaN", "__builtins__", "1 == 1", "1 < 2",
    "~1", "slice(1)", "'%s' % 1", "'{}'.format(1)", "print", "a.b", "type(1)", "''.join(())",
    "@1", "1 and 2",
)  # fmt: skip

EVENTS: list[str] = []
watching = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if watching:
        EVENTS.append(event)


@contextmanager
def nothing_done() -> Iterator[None]:
    """Asserts that Python was asked for nothing that it announces: no code compiled or run, no
    import, no file, no process, no look at an object's insides.
    """
    global watching
    if not EVENTS:
        sys.addaudithook(_hook)  # cannot be taken away again
    EVENTS[:] = ["begin"]
    watching = True
    try:
        yield
    finally:
        watching = False
    assert EVENTS == ["begin"]


def written(random_: random.Random, value: Any) -> str:
    """A value in either notation."""
    if isinstance(value, list):
        brackets = random_.choice(["[]", "()"]) if len(value) > 1 else "[]"
        return brackets[0] + ", ".join(written(random_, item) for item in value) + brackets[1]
    if isinstance(value, dict):
        items = (f"{written(random_, key)}: {written(random_, v)}" for key, v in value.items())
        return "{" + ", ".join(items) + "}"
    if type(value) is int and abs(value) < 2**30 and random_.random() < 0.3:
        return random_.choice([hex, oct, bin, "{:_}".format])(value)
    if isinstance(value, str) and random_.random() < 0.2:
        at = random_.randrange(len(value) + 1)
        return f"{value[:at]!r} {value[at:]!r}"  # side by side
    as_json = random_.random() < 0.5
    return json.dumps(value, ensure_ascii=random_.random() < 0.5) if as_json else repr(value)


def any_value(random_: random.Random, depth: int = 0) -> Any:
    kind = random_.randrange(7 if depth < 3 else 5)
    if kind == 0:
        return random_.choice([True, False, None])
    if kind == 1:
        return random_.choice([0, -1, 7, 10**20, random_.randrange(-999, 999)])
    if kind == 2:
        return random_.choice([0.5, -1e-7, 1e300, random_.uniform(-9, 9)])
    if kind < 5:
        return "".join(random_.choices("ab )]}[({,='\"\\\n\té🦙`<|;#", k=random_.randrange(9)))
    if kind == 5:
        return [any_value(random_, depth + 1) for _ in range(random_.randrange(4))]
    return {f"k{index}": any_value(random_, depth + 1) for index in range(random_.randrange(4))}


def any_call(random_: random.Random) -> ToolCall:
    arguments = {f"a{index}": any_value(random_) for index in range(random_.randrange(4))}
    return ToolCall(random_.choice(NAMES), arguments)


def one_call(random_: random.Random, call: ToolCall, hostile: str | None = None) -> str:
    """Pythonic or in JSON, maybe with an argument more."""
    items = [(name, written(random_, value)) for name, value in call.arguments.items()]
    if hostile is not None:
        items.insert(random_.randrange(len(items) + 1), ("z", hostile))
    if random_.random() < 0.6:
        return f"{call.name}({', '.join(f'{name}={value}' for name, value in items)})"
    inner = ", ".join(f'"{name}": {value}' for name, value in items)
    return f'{{"name": "{call.name}", "parameters": {{{inner}}}}}'


def wrapped(random_: random.Random, calls: list[str]) -> str:
    text = f"[{', '.join(calls)}]"
    return random_.choice(
        ["{}", "{}", " {}\n", "<|python_start|>{}<|python_end|>", "Well:\n{}"]
    ).format(text)


@pytest.mark.prove("tools")
def test_fuzz_well_formed_calls() -> None:
    random_ = random.Random(0)
    with_fences, replies = 0, scaled(1500, long=100_000)
    for _ in range(replies):
        calls = [any_call(random_) for _ in range(random_.randrange(1, 4))]
        text = wrapped(random_, [one_call(random_, call) for call in calls])
        with nothing_done():
            reply = parse_reply(text, NAMES)
        if "```" in text:
            with_fences += 1
            continue
        assert repr(reply.calls) == repr(tuple(calls)), text
        assert reply.refused is None
    print(f"\n{replies} well-formed replies: all calls as they were written")
    assert with_fences < replies / 30


@pytest.mark.prove("tools")
def test_fuzz_hostile_calls() -> None:
    """One hostile argument amid good ones, or hostile code in place of a call."""
    random_ = random.Random(1)
    for index in range(scaled(6000, long=300_000)):
        hostile = HOSTILE[index % len(HOSTILE)]
        calls = [one_call(random_, any_call(random_)) for _ in range(random_.randrange(3))]
        bad = one_call(random_, any_call(random_), hostile)
        calls.insert(random_.randrange(len(calls) + 1), bad)
        text = wrapped(random_, calls)
        with nothing_done():
            reply = parse_reply(text, NAMES)
        assert reply.calls == (), text
        assert reply.refused, text
        assert bad in reply.text


@pytest.mark.prove("tools")
def test_fuzz_damaged_calls() -> None:
    """Whatever is accepted names known tools with literals, and Python reads it the same."""
    random_ = random.Random(2)
    pieces = (
        *HOSTILE,
        *"()[]{}=,:;.'\"\\`*",
        "<|python_start|>",
        "```",
        "None",
        "f",
        "\n",
        "1",
        " ",
    )
    accepted, compared, replies = 0, 0, scaled(6000, long=300_000)
    for _ in range(replies):
        calls = [one_call(random_, any_call(random_)) for _ in range(random_.randrange(1, 3))]
        text = wrapped(random_, calls)
        for _ in range(random_.randrange(1, 3)):
            start = random_.randrange(len(text))
            stop = start + random_.randrange(3)
            text = text[:start] + random_.choice(pieces) + text[stop:]
        with nothing_done():
            reply = parse_reply(text, NAMES)
        assert not (reply.calls and reply.refused)
        for call in reply.calls:
            assert call.name in NAMES
            assert_literal(call.arguments)
        accepted += bool(reply.calls)
        if reply.calls and (expected := as_python_reads(text)) is not None:
            assert repr([(call.name, call.arguments) for call in reply.calls]) == repr(expected)
            compared += 1
    print(f"\n{replies} damaged replies: {accepted} accepted, {compared} as Python reads them")
    assert accepted > replies / 20
    assert compared > replies / 120


def assert_literal(value: Any) -> None:
    if type(value) is list:
        for item in value:
            assert_literal(item)
    elif type(value) is dict:
        assert all(type(key) is str for key in value)
        assert_literal(list(value.values()))
    else:
        assert type(value) in (str, int, float, bool, type(None))


def as_python_reads(text: str) -> list[tuple[str, dict[str, Any]]] | None:
    """None where Python's grammar has no say: JSON's words and escapes, and its calls."""
    if unicodedata.normalize("NFKC", text) != text:  # Python takes look-alikes for letters
        return None
    if any(word in text for word in ("true", "false", "null", "\\/", "\\u", '"name"')):
        return None
    bare = text.strip().removeprefix("<|python_start|>").removesuffix("<|python_end|>")
    if "<|python_" in bare:  # amid the calls, where it is no part of Python
        return None
    try:
        (statement,) = ast.parse(bare.removeprefix("Well:").strip()).body
        return [
            (
                ast.unparse(call.func),
                {k.arg: as_lists(ast.literal_eval(k.value)) for k in call.keywords},
            )
            for call in statement.value.elts
        ]
    except (SyntaxError, ValueError, AttributeError, MemoryError):  # the last for nesting
        return None


def as_lists(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [as_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return value
