"""Replies → calls of tools: all forms that models of the family use, and nothing ever evaluated."""

import ast
import time

import pytest

from mlx_llama4.prompt.replies import MAX_CALLS, MAX_LENGTH, Reply, ToolCall, parse_reply

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
    "[f(a='b' % 1)]": "should come after an argument",
    "[f(a=--1)]": "must be a text",
    "[f(a=...)]": "must be a text",
    "[f(a={1, 2})]": "key must be a text",
    "[f(a={1: 2})]": "key must be a text",
    "[f(a=007)]": "must be a text",
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
    "[f(a='\\u12')]": "not a character",
    "[f(a='\\U00110000')]": "not a character",
    "[f(a='\\N{DIGIT ONE}')]": "not a character",
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
    '{"name": "", "parameters": {}}': "there is no tool ''",
    '[f(a=1), {"name": "", "parameters": {}}]': "there is no tool ''",
    '{"name": "f", "parameters": [1]}': "must be a dict",
    '{"name": "f", "parameters": "x"}': "'{' should come after",
    '{"name": "f", "arguments": "{} x"}': "nothing should come after",
    '{"name": "f", "parameters": {}, "arguments": {}}': "both",
    '{"name": "f", "parameters": {}, "then": 1}': "the key 'then'",
    '{"name": "f", "parameters": {"a": f()}}': "must be a text",
    "<function=h>{}</function>": "no tool 'h'",
    "<|python_start|>import os<|python_end|>": "not a tool call",
    "<|python_start|>print(1)": "not a tool call",
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


@pytest.mark.parametrize(
    "written",
    ["0x1F", "0XfF", "0o17", "0b101", "1_000", "0x_ff_ff", "1_0.5_0e1_0", "00", "0_0", "00.5",
     "-0x10", "+1_000", "'a' 'b'", '"a" \'b\'\n"c"', "r'\\d'", 'R"\\n"', "u'x'", "'\\x41' r'\\x41'",
     "{'a' 'b': 0x1}", "[r'a', 0b1]", "('a' 'b')"],
)  # fmt: skip
def test_literals_mean_what_python_says(written: str) -> None:
    reply = parse_reply(f"[f(a={written})]", NAMES)
    assert reply.calls == (ToolCall("f", {"a": ast.literal_eval(f"({written})")}),), reply


@pytest.mark.parametrize(
    "written",
    ["0x", "0xg", "0b12", "0o8", "1__0", "1_", "_1", "0_x1", "012", "1_000_", "0x1.5", "1e_5",
     "1e5_", "b'x'", "rb'x'", "f'x'",
     "fr'x'", "'a' b'b'", "'a' + 'b'", "'a' f'b'", "r'x", "ur'x'", "1j"],
)  # fmt: skip
def test_literals_that_are_something_else(written: str) -> None:
    reply = parse_reply(f"[f(a={written})]", NAMES)
    assert reply.calls == () and reply.refused


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<function=f>{"a": 1}', [("f", {"a": 1})]),
        ('<function=f>{"a": 1}\n<function=g>{}</function>', [("f", {"a": 1}), ("g", {})]),
        ('Well.\n<function=f>{"a": 1}', [("f", {"a": 1})]),
        (f"<tool_call>{JSON}</tool_call>", [("get_weather", {"city": "Oslo"})]),
        (f"<tool_call>\n{JSON}\n</tool_call>\n<tool_call>\n{JSON}\n</tool_call>",
         [("get_weather", {"city": "Oslo"})] * 2),
        (f"<tool_call>[{JSON}]</tool_call>", [("get_weather", {"city": "Oslo"})]),
        (f"<tool_call>{JSON}", [("get_weather", {"city": "Oslo"})]),
        (f"Well.\n<tool_call>{JSON}</tool_call>", [("get_weather", {"city": "Oslo"})]),
        ("<tool_call>[f(a=1)]</tool_call>", [("f", {"a": 1})]),
        ('{"name": "f", "parameters": null}', [("f", {})]),
        ('{"name": "f", "arguments": null}', [("f", {})]),
        ('{"name": "f"}', [("f", {})]),
        ('{"type": "function", "name": "f"}', [("f", {})]),
        ('{"type": "function", "function": {"name": "f"}}', [("f", {})]),
        ('[{"name": "f"}, {"name": "g", "parameters": {}}]', [("f", {}), ("g", {})]),
    ],
)  # fmt: skip
def test_habits_of_models(text: str, calls: list[tuple[str, dict]]) -> None:
    found = parse_reply(text, NAMES)
    assert [(call.name, call.arguments) for call in found.calls] == calls, found
    assert found.text in ("", "Well.")


def test_data_is_no_call() -> None:
    for text in ('{"name": "Ada"}', '{"name": "f", "age": 3}', '[{"name": "Ada"}]', '{"name": 3}'):
        assert parse_reply(text, NAMES) == Reply(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<|python_start|>[f(a=1)]<|python_end|> more", "more"),
        ("words <|python_start|>[f(a=1)]<|python_end|> more words", "words  more words"),
        ("<|python_start|>f(a=1)<|python_end|>\nIt is [done].", "It is [done]."),
        ('a <|python_start|>{"name": "f", "parameters": {"a": 1}}<|python_end|> b', "a  b"),
    ],
)
def test_calls_between_marks_may_have_words_around(text: str, said: str) -> None:
    assert parse_reply(text, NAMES) == Reply(said, (ToolCall("f", {"a": 1}),))


def test_words_may_stand_between_calls_between_marks() -> None:
    f, g = (f"<|python_start|>[{name}()]<|python_end|>" for name in "fg")
    calls = (ToolCall("f", {}), ToolCall("g", {}))
    for text, said in (
        (f"{f} and {g}", "and"),
        (f"First {f} then {g}", "First  then"),
        (f"{f}, then\n{g} at last", ", then\n at last"),
        (f"{f}{g} at last", "at last"),
        (f + g, ""),
    ):
        assert parse_reply(text, NAMES) == Reply(said, calls)
    assert parse_reply(f"{f}, not `[g()]`", NAMES) == Reply(", not `[g()]`", calls[:1])
    for text in (f"{f} [g()] and {g}", f"{f} and {g.removesuffix('<|python_end|>')}"):
        assert parse_reply(text, NAMES).calls == ()


@pytest.mark.parametrize(
    "text",
    [
        "[f(a=1)] more words",  # no marks
        "<|python_start|>[f(a=1)] <|python_end|><|python_start|> words",
        "<|python_start|>[f(a=x)]<|python_end|> words",
        "<|python_start|>[f(a=1)] and<|python_end|> words",
        "<|python_start|>[f(a=1)]<|python_end|> or <|python_start|>[f(a=)]<|python_end|> words",
    ],
)
def test_words_after_calls_that_no_marks_set_off(text: str) -> None:
    assert parse_reply(text, NAMES).calls == ()
