"""Replies → calls of tools: all forms that models of the family use, and nothing ever evaluated."""

import ast
import json
import random
import re
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mlx_llama4.prompt.tool_calls import MAX_CALLS, MAX_LENGTH, Reply, ToolCall, parse_reply

NAMES = ("get_weather", "get_user_info", "trending_songs", "f", "g", "größe", "maps.find-place")
OSLO = (ToolCall("get_weather", {"city": "Oslo"}),)

PUBLISHED = {  # Meta's prompt_format.md for Llama 4
    '[get_weather(city="San Francisco"), get_weather(city="Seattle")]': (
        ToolCall("get_weather", {"city": "San Francisco"}),
        ToolCall("get_weather", {"city": "Seattle"}),
    ),
    "[get_user_info(user_id=7890, special='black')]": (
        ToolCall("get_user_info", {"user_id": 7890, "special": "black"}),
    ),
    '<function=trending_songs>{"n": 10}</function>': (ToolCall("trending_songs", {"n": 10}),),
}


@pytest.mark.parametrize("text", PUBLISHED)
def test_published_examples(text: str) -> None:
    for said in (
        text,
        f"\n {text}\n",
        f"<|python_start|>{text}<|python_end|>",
        f"```\n{text}\n```",
    ):
        assert parse_reply(said, NAMES) == Reply("", PUBLISHED[text])
    assert parse_reply(f"Let me see.\n{text}", NAMES) == Reply("Let me see.", PUBLISHED[text])


JSON = '{"name": "get_weather", "parameters": {"city": "Oslo"}}'
FORMS = (
    '[get_weather(city="Oslo")]',
    "[ get_weather ( city = 'Oslo' , ) , ]",
    'get_weather(city="Oslo")',
    '<|python_start|>get_weather(city="Oslo")',
    f"<|python_start|><|python_end|>{JSON}",
    '[get_weather(city="Oslo")]<|python_end|>',
    JSON,
    f"[{JSON}]",
    JSON.replace("parameters", "arguments"),
    '{"type": "function", "name": "get_weather", "arguments": {"city": "Oslo"}}',
    '{"id": "1", "type": "function", "function": {"name": "get_weather", '
    '"arguments": "{\\"city\\": \\"Oslo\\"}"}}',
    JSON.replace('"', "'"),
    f"```json\n{JSON}\n```",
    "```python\n[get_weather(city='Oslo')]```",
)


@pytest.mark.parametrize("text", FORMS)
def test_forms(text: str) -> None:
    assert parse_reply(text, NAMES) == Reply("", OSLO)


@pytest.mark.parametrize("separator", ["", ";", "; ", ",", ",\n", "\n", "\n\n"])
def test_several_after_one_another(separator: str) -> None:
    for first, second in ((JSON, '{"name": "f", "parameters": {}}'), (FORMS[0], "[f()]")):
        reply = parse_reply(first + separator + second, NAMES)
        assert reply == Reply("", (*OSLO, ToolCall("f", {})))


@pytest.mark.parametrize(
    "said", ["I'll look. ", "So [1]:\n", "```\nx = f(a)\n```\n", "{a} [b](c) "]
)
def test_calls_after_text(said: str) -> None:
    for call in (FORMS[0], JSON, f"[{JSON}]"):
        assert parse_reply(said + call, NAMES) == Reply(said.strip(), OSLO)
    assert parse_reply(f"{said}<|python_start|>{JSON}", NAMES) == Reply(said.strip(), OSLO)


def test_literals() -> None:
    written = {
        "1": 1, "-2": -2, "+3": 3, "0": 0, "1.5": 1.5, "-.5": -0.5, "1.": 1.0, "2e3": 2000.0,
        "True": True, "false": False, "None": None, "null": None, "[]": [], "{}": {},
        "(1, 'a')": [1, "a"], "(1,)": [1], "(1)": 1, "()": [],
        "[1, [2, {'a': (3,)}],]": [1, [2, {"a": [3]}]],
        '"a\\n\\t\\"\\\\\\/b"': 'a\n\t"\\/b', r"'\d \x41 \101 \u00e9 \U0001F999'": r"\d A A é 🦙",
        r'"\ud83e\udd99"': "🦙", '"""two "quoted"\nlines"""': 'two "quoted"\nlines', "''": "",
        "'it\\'s'": "it's", '"a\\\nb"': "ab",
    }  # fmt: skip
    for source, value in written.items():
        (call,) = parse_reply(f"[f(a={source})]", NAMES).calls
        assert repr(call.arguments) == repr({"a": value})


def test_names_of_other_kinds() -> None:
    for name in ("größe", "maps.find-place"):
        assert parse_reply(f"[{name}(x=1)]", NAMES).calls == (ToolCall(name, {"x": 1}),)


# What must be taken for what it is: words.
PROSE = (
    "", " \n", "Hello!", "[1, 2]", "[]", "{}", '["a", {"b": [null]}]', '{"name": "Bob", "age": 3}',
    '[{"name": "Bob"}]', "[x] done, [ ] not done", "See [the docs](https://example.org/f(x)).",
    "[get_weather](https://example.org)", "[1] See foo(bar) and [2]", "[a](b) and [c](d)",
    "Write `[f(a=1)]` to call it.", "You could call [f(a=1)] or not.", "`[f(a=1)]`",
    "For example:\n```python\n[f(a=1)]\n```", "For example:\n```python\n[f(a=1)]",
    "For example:\n```json\n" + JSON + "\n```\nThat is all.", "f (the function) is odd (really)",
    "print('hi')", "- f(a=1)\n- g(b=2)", "1. get_weather(city)",
    'Data: {"name": "Bob", "arguments": {}}', "So it is [foo(a=1)]", "x = [g for g in range(3)]",
    "[" * 5000, "(" * 5000 + ")" * 5000, "x" * 200_000, "{" * 3000, "a [f" * 8000,
)  # fmt: skip


@pytest.mark.parametrize("text", PROSE, ids=lambda text: repr(text[:40]))
def test_words_are_no_calls(text: str) -> None:
    assert parse_reply(text, NAMES) == Reply(text)


REFUSED = {
    "[f(1)]": "name=value, not '1)]'",
    "[f(a)]": "name=value",
    "[f(a==1)]": "name=value",
    "[f(*a)]": "name=value, not '*a)]'",
    '[f(**{"a": 1})]': "name=value",
    "[f(a=1, a=2)]": "'a' is given twice",
    "[f(a={'b': 1, 'b': 2})]": "'b' is given twice",
    '{"name": "f", "name": "g", "parameters": {}}': "'name' is given twice",
    "[f(a=g())]": "not 'g())]'",
    "[f(a=os.environ)]": "not 'os.environ)]'",
    "[f(a=lambda: 1)]": "not 'lambda: 1)]'",
    "[f(a=f'{b}')]": "not \"f'{b}')]\"",
    "[f(a=b'x')]": "must be a text",
    "[f(a=[x for x in 'ab'])]": "must be a text",
    "[f(a=[1 for x in 'ab'])]": "should come after a value",
    "[f(a=(b := 1))]": "must be a text",
    "[f(a:=1)]": "name=value",
    "[f(a=1 if True else 2)]": "should come after an argument",
    "[f(a=1 + 1)]": "should come after an argument",
    "[f(a='b' 'c')]": "should come after an argument",
    "[f(a='b' % 1)]": "should come after an argument",
    "[f(a=--1)]": "must be a text",
    "[f(a=...)]": "must be a text",
    "[f(a={1, 2})]": "key must be a text",
    "[f(a={1: 2})]": "key must be a text",
    "[f(a=007)]": "must be a text",
    "[f(a=0x10)]": "must be a text",
    "[f(a=1j)]": "must be a text",
    "[f(a=١)]": "must be a text",
    "[f(a=NaN)]": "must be a text",
    "[f(a=1e999)]": "too large",
    f"[f(a={'9' * 5000})]": "a number has 5,000 characters",
    f"[f(a={'[' * 500}{']' * 500})]": "nested more than 16 deep",
    '{"name": "f", "parameters": ' + '{"a": ' * 99 + "1" + "}" * 100: "nested more than 16 deep",
    f"[f(a='{'x' * MAX_LENGTH}')]": "more than 100,000 characters",
    f"[{'f(), ' * (MAX_CALLS + 1)}]": "more than 32 calls",
    "[f(a='\\ud83e')]": "half a character",
    "[f(a='\\u12')]": "no character",
    "[f(a='\\U00110000')]": "no character",
    "[f(a='\\N{DIGIT ONE}')]": "no character",
    "[f(a='b]": "a text has no end",
    "[f(a=": "but it ends there",
    "[f(a=1": "but it ends there",
    "f(a=1).b": "nothing but calls",
    "[f(a=1)()]": "should come after a call",
    "[f(a=1)][0]": "nothing but calls",
    "[f(a=1)] and so on": "nothing but calls",
    "[f(a=1), 2]": "nothing but calls",
    "[[f(a=1)]]": "must be a text",
    "[(lambda: 1)()]": "must be a text",
    "['%s' % f()]": "should come after a value",
    "[h(a=1)]": "there is no tool 'h'; there are: f, g, get_user_info",
    "[ｆ(a=1)]": "there is no tool 'ｆ'",
    "[ｇet_weather(city='Oslo')]": "there is no tool",
    "[f.__class__(a=1)]": "there is no tool 'f.__class__'",
    "[__import__('os').system('id')]": "name=value",
    "[f(a=1), print(b=2)]": "there is no tool 'print'",
    "h(a=1)": "there is no tool 'h'",
    '{"name": "h", "parameters": {}}': "there is no tool 'h'",
    '{"name": "f", "parameters": [1]}': "must be a dict",
    '{"name": "f", "parameters": "x"}': "'{' should come after",
    '{"name": "f", "arguments": "{} x"}': "nothing should come after",
    '{"name": "f", "parameters": {}, "arguments": {}}': "both",
    '{"name": "f", "parameters": {}, "then": 1}': "the key 'then'",
    '{"name": "f", "parameters": {"a": f()}}': "must be a text",
    "<function=h>{}</function>": "no tool 'h'",
    "<function=f>{}": "should come after the arguments",
    "<|python_start|>import os<|python_end|>": "no call of a tool",
    "<|python_start|>print(1)": "no call of a tool",
    "Sure: [f(a=open('x'))]": "must be a text",
    "Sure: " + JSON.replace('"Oslo"', "exit()"): "must be a text",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: repr(text[:40]))
def test_refused_calls(text: str) -> None:
    reply = parse_reply(text, NAMES)
    assert REFUSED[text] in reply.refused
    assert len(reply.refused) < 300
    assert "\n" not in reply.refused
    assert reply.calls == ()
    shown = text.replace("<|python_start|>", "").replace("<|python_end|>", "")
    assert reply.text.strip() == shown.strip()


def test_hostile_lengths_take_no_time() -> None:
    started = time.process_time()
    for text in (
        "[f(a='" * 8_000, "[f(a=1) " * 8_000 + "]", JSON[:-1] * 3000 + "}", "[" * 3 * 10**5 + "]",
        "{'name':'f','parameters':" * 8_000 + "}", "[f(a='''" * 8_000 + "]", "1" * 3 * 10**5,
        "[f(a=" + "-" * 10**5 + "1)]", "[f(a=" + "(" * 10**5, "f(" * 10**5 + ")", "```\n" * 10**5,
        "[f(a=" + "1," * 40_000 + ")]", "[f(a=" + "9" * 90_000 + "x)]", "x [f()" * 8_000 + "}",
    ):  # fmt: skip
        assert not parse_reply(text, NAMES).calls
    assert time.process_time() - started < 5


# Fuzzing.

HOSTILE = (
    "g()", "__import__('os').system('touch owned')", "f.__globals__", "os.environ['HOME']",
    "lambda: 0", "f'{g()}'", "f\"{__import__('os')}\"", "[x for x in (1, 2)]",
    "{k: 1 for k in 'ab'}", "(y := 1)", "*[1]", "**{'a': 1}", "1 if 1 else 2", "not 1", "1 + 1",
    "2 ** 99999999", "'a' * 10 ** 10", "[1][0]", "{1}", "{**{'a': 1}}", "await g()", "yield 1",
    "...", "b'x'", "r'x'", "'a' 'b'", "`id`", "9" * 300, "1e9999", "-" * 300 + "1",
    "[" * 300 + "]" * 300, "(" * 300 + "1" + ")" * 300, "Тrue", "\uff34rue",
    "open('/etc/passwd')", "exec('1')", "eval('1')", "$(id)", "<b>", "0o17", "1_000", "x",
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


def test_fuzz_well_formed_calls() -> None:
    random_ = random.Random(0)
    with_fences = 0
    for _ in range(1500):
        calls = [any_call(random_) for _ in range(random_.randrange(1, 4))]
        text = wrapped(random_, [one_call(random_, call) for call in calls])
        with nothing_done():
            reply = parse_reply(text, NAMES)
        if "```" in text:
            with_fences += 1
            continue
        assert repr(reply.calls) == repr(tuple(calls)), text
        assert reply.refused is None
    assert with_fences < 50


def test_fuzz_hostile_calls() -> None:
    """One hostile argument amid good ones, or hostile code in place of a call."""
    random_ = random.Random(1)
    for index in range(6000):
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
    accepted = compared = 0
    for _ in range(6000):
        calls = [one_call(random_, any_call(random_)) for _ in range(random_.randrange(1, 3))]
        text = wrapped(random_, calls)
        for _ in range(random_.randrange(1, 4)):
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
    assert accepted > 300
    assert compared > 50


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
    try:
        (statement,) = ast.parse(re.sub(r"<\|python_\w+\|>|^Well:", "", text).strip()).body
        return [
            (
                ast.unparse(call.func),
                {k.arg: as_lists(ast.literal_eval(k.value)) for k in call.keywords},
            )
            for call in statement.value.elts
        ]
    except (SyntaxError, ValueError, AttributeError):
        return None


def as_lists(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [as_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return value
