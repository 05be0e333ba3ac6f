"""What the suites of vLLM, SGLang, mlx-lm and mlx-vlm ask of their readers of Llama's calls, asked
of ours: one input for each shape of theirs, in words of our own, with what theirs is said to give.

READ is read as they assert. DIFFERENT is not, each by a policy that docs/tools.md states.
"""

from typing import Any

import pytest

from mlx_llama4.prompt.replies import Reply, ToolCall, parse_reply

NAMES = ("forecast", "enrol", "brew", "find", "list_open", "museums", "write", "multiply", "deep")
START, END = "<|python_start|>", "<|python_end|>"

FORECAST = "forecast(city='Turin', unit='K')"
ENROL = (
    "enrol(name='Ada', age=8, home={'city': 'Turin', 'land': 'IT'}, rank=None, passed=True, "
    "aliases=['A', 'Ad'])"
)
ESCAPED = r"forecast(city='St John\'s', unit='\"odd units\"')"
FIND = '{"name": "find", "parameters": {"query": "one"}}'
LIST = '{"name": "list_open", "parameters": {}}'
WRAPPED = (
    '<tool_call>{"name": "forecast", "arguments": {"city": "%s"}}, '
    '{"name": "museums", "arguments": {"city": "%s"}}%s</tool_call>'
)

Calls = list[tuple[str, dict[str, Any]]]
TURIN = ("forecast", {"city": "Turin", "unit": "K"})
ADA = (
    "enrol",
    {"name": "Ada", "age": 8, "home": {"city": "Turin", "land": "IT"}, "rank": None,
     "passed": True, "aliases": ["A", "Ad"]},
)  # fmt: skip
ODD = ("forecast", {"city": "St John's", "unit": '"odd units"'})
ONE, OPEN = ("find", {"query": "one"}), ("list_open", {})

# Shape, as the suite calls it → (reply, text, calls).
READ: dict[str, tuple[str, str, Calls]] = {
    "vllm llama4: no call": ("What may I do for you?", "What may I do for you?", []),
    "vllm llama4: simple": (f"[{FORECAST}]", "", [TURIN]),
    "vllm llama4: more types": (f"[{ENROL}]", "", [ADA]),
    "vllm llama4: parameterless": ("[forecast()]", "", [("forecast", {})]),
    "vllm llama4: empty dict": ("[brew(more={})]", "", [("brew", {"more": {}})]),
    "vllm llama4: empty list": ("[brew(steps=[])]", "", [("brew", {"steps": []})]),
    "vllm llama4: escaped string": (f"[{ESCAPED}]", "", [ODD]),
    "vllm llama4: parallel": (
        "[forecast(city='Turin',unit='K'),enrol(name='Ada',age=8)]",
        "",
        [TURIN, ("enrol", {"name": "Ada", "age": 8})],
    ),
    "vllm llama4: python tag": (f"{START}[{FORECAST}]{END}", "", [TURIN]),
    "vllm llama4: python tag without its end": (
        f"{START}[{FORECAST}, enrol(name='Ada', age=8)]",
        "",
        [TURIN, ("enrol", {"name": "Ada", "age": 8})],
    ),
    "vllm llama4: large steps": (
        f"{START}[{FORECAST}, forecast(), brew(steps=[])]{END}",
        "",
        [TURIN, ("forecast", {}), ("brew", {"steps": []})],
    ),
    "vllm pythonic: parallel, more types": (f"[{FORECAST}, {ENROL}]", "", [TURIN, ADA]),
    "vllm pythonic: hard on a pattern": (
        "well then[A(A=" + "\t)A(A=,\t" * 2,
        "well then[A(A=" + "\t)A(A=,\t\t)A(A=,",
        [],
    ),
    "vllm pythonic: nothing to recover": (
        "[find(a='x 'y' 'z), brew(b='p 'q' 'r)]",
        "[find(a='x 'y' 'z), brew(b='p 'q' 'r)]",
        [],
    ),
    "vllm pythonic: mismatched brackets": ("[find(a=1])]", "[find(a=1])]", []),
    "vllm llama4: mismatched brackets": (f"{START}[find(a=1])]{END}", "[find(a=1])]", []),
    "vllm llama3 json: arguments": (
        '{"name": "find", "parameters": {"query": "two words", "limit": 7}}',
        "",
        [("find", {"query": "two words", "limit": 7})],
    ),
    "vllm llama3 json: no JSON": ("No tool is needed here", "No tool is needed here", []),
    "vllm llama3 json: invalid": (
        '{"name": "find", "parameters": {not json}',
        '{"name": "find", "parameters": {not json}',
        [],
    ),
    "vllm llama3 json: key arguments": (FIND.replace("parameters", "arguments"), "", [ONE]),
    "vllm llama3 json: several": (f"{FIND}; {LIST}; {FIND}", "", [ONE, OPEN, ONE]),
    "vllm llama3 json: several, spaced": (f"{FIND} ; {LIST} ; {FIND}", "", [ONE, OPEN, ONE]),
    "vllm llama3 json: separator ;": (f"{FIND};{LIST}", "", [ONE, OPEN]),
    "vllm llama3 json: separator ; and line": (f"{FIND};\n{LIST}", "", [ONE, OPEN]),
    "vllm llama3 json: separator line": (f"{FIND}\n{LIST}", "", [ONE, OPEN]),
    "vllm llama3 json: deep": (
        '{"name": "deep", "parameters": {"a": {"b": {"c": {"d": {"value": "low"}}}}}}',
        "",
        [("deep", {"a": {"b": {"c": {"d": {"value": "low"}}}}})],
    ),
    "vllm llama3 json: several, deep": (
        f'{FIND}; {{"name": "deep", "parameters": {{"a": {{"b": {{"c": {{"size": 7}}}}}}}}}}',
        "",
        [ONE, ("deep", {"a": {"b": {"c": {"size": 7}}}})],
    ),
    "vllm llama3 json: brackets in texts": (
        '{"name": "find", "parameters": {"query": "a {b} [c]","in": {"it": "more {d}"}}}',
        "",
        [("find", {"query": "a {b} [c]", "in": {"it": "more {d}"}})],
    ),
    "vllm llama3 json: escaped quotes": (
        '{"name": "find", "parameters": {"query": "They said \\"Hi {you}\\""}}',
        "",
        [("find", {"query": 'They said "Hi {you}"'})],
    ),
    "vllm llama3 json: no name": ('{"parameters": {}}', '{"parameters": {}}', []),
    "vllm llama3 json: hard on a pattern": (
        "{well then[A(A=" + "\t)A(A=,\t" * 2,
        "{well then[A(A=" + "\t)A(A=,\t\t)A(A=,",
        [],
    ),
    "sglang pythonic: after a text": (f"This is a call: [{FORECAST}]", "This is a call:", [TURIN]),
    "sglang pythonic: unfinished": (
        "Let me look: [forecast(city=",
        "Let me look: [forecast(city=",
        [],
    ),
    "sglang pythonic: alone": ("[find(query='two words')]", "", [("find", {"query": "two words"})]),
    "sglang pythonic: an opening bracket": ("Let us try: [", "Let us try: [", []),
    "sglang pythonic: nested list": (
        "[forecast(city='Turin', data=[1, 2, 3])]",
        "",
        [("forecast", {"city": "Turin", "data": [1, 2, 3]})],
    ),
    "sglang pythonic: nested dict": (
        "[find(query='q', how={'any': [1, 2], 'in': {'key': 'value'}})]",
        "",
        [("find", {"query": "q", "how": {"any": [1, 2], "in": {"key": "value"}}})],
    ),
    "sglang pythonic: several, nested": (
        "[forecast(city='Turin', data=[8, 9]), find(query='q', only=['a', 'b'])]",
        "",
        [
            ("forecast", {"city": "Turin", "data": [8, 9]}),
            ("find", {"query": "q", "only": ["a", "b"]}),
        ],
    ),
    "sglang pythonic: unfinished, nested": (
        "This is a call: [forecast(city='Turin', data=[1, 2",
        "This is a call: [forecast(city='Turin', data=[1, 2",
        [],
    ),
    "sglang pythonic: after a text, between marks": (
        f"This is a call: {START}[forecast(city='Turin', data=[1, 2, 3])]{END}",
        "This is a call:",
        [("forecast", {"city": "Turin", "data": [1, 2, 3]})],
    ),
    "sglang pythonic: words around the marks": (
        f"They ask for it. {START}[{FORECAST}]{END} So we shall know.",
        "They ask for it.  So we shall know.",
        [TURIN],
    ),
    "sglang base: <tool_call>": (
        WRAPPED % ("Turin", "Rome", ""),
        "",
        [("forecast", {"city": "Turin"}), ("museums", {"city": "Rome"})],
    ),
    "sglang base: <tool_call>, spaced": (
        WRAPPED % ("Turin", "Rome", " "),
        "",
        [("forecast", {"city": "Turin"}), ("museums", {"city": "Rome"})],
    ),
    "sglang base: unknown tool": (
        '<tool_call>{"name": "nothing", ',
        '<tool_call>{"name": "nothing", ',
        [],
    ),
    "sglang base: Chinese": (
        WRAPPED % ("都灵", "罗马", ""),
        "",
        [("forecast", {"city": "都灵"}), ("museums", {"city": "罗马"})],
    ),
    "sglang llama 3.2: JSON": (FIND, "", [ONE]),
    "sglang llama 3.2: several after the mark": (f"{START}{FIND};{LIST}", "", [ONE, OPEN]),
    "sglang llama 3.2: a mark before each": (f"{START}{FIND}{START}{LIST}", "", [ONE, OPEN]),
    "sglang llama 3.2: after words and the mark": (f"An intro. {START}{LIST}", "An intro.", [OPEN]),
    "mlx-lm json": (
        '{"name": "multiply", "arguments": {"a": 9876543, "b": 98765432101}}',
        "",
        [("multiply", {"a": 9876543, "b": 98765432101})],
    ),
    "mlx-vlm pythonic: nested literals": (
        "[brew(how={'at': [0, 1], 'hot': True})]",
        "",
        [("brew", {"how": {"at": [0, 1], "hot": True}})],
    ),
    "mlx-vlm pythonic: a quote without its end": (
        "[write(content='let a = { b: 0 };)]",
        "[write(content='let a = { b: 0 };)]",
        [],
    ),
    "mlx-vlm pythonic: no literal": (
        "[write(content=read_it())]",
        "[write(content=read_it())]",
        [],
    ),
}  # fmt: skip

# Shape → (reply, what theirs takes, what ours says: a refusal, or words that stay words if None).
WORDS, WRONG = "words after a call", "a call beside a wrong one"
DIFFERENT: dict[str, tuple[str, str, Calls, str | None]] = {
    "vllm llama3 json: words around": (WORDS, f"It is: {LIST} Any more?", [OPEN], None),
    "vllm llama3 json: several, words around": (
        WORDS, f"They are: {FIND}; {LIST}; {FIND} Any more?", [ONE, OPEN, ONE], None
    ),
    "vllm llama3 json: a brace in words after": (
        WORDS, f"{FIND} I used {{find}} here.", [ONE], "nothing but calls should come after"
    ),
    "vllm llama3 json: JSON in words after": (
        WORDS, f'{FIND} It was given {{"query": "one"}}', [ONE], "nothing but calls"
    ),
    "sglang llama 3.2: words after": (WORDS, f"{FIND} And more", [ONE], "nothing but calls"),
    "sglang pythonic: words after": (
        WORDS, f"[{FORECAST}] This is what they say:", [TURIN], "nothing but calls"
    ),
    "sglang pythonic: words between": (
        WORDS, f"[{FORECAST}] and [find(query='one')]", [TURIN, ONE], "nothing but calls"
    ),
    "vllm llama4: bytes beside": (
        WRONG, f"{START}[brew(x=b'z'), {FORECAST}]{END}", [TURIN], "must be a text"
    ),
    "vllm pythonic: bytes beside": (
        WRONG, f"[brew(x=b'z'), {FORECAST}]", [TURIN], "must be a text"
    ),
    "vllm llama4: infinity beside": (
        WRONG, f"{START}[brew(x=1e999), {FORECAST}]{END}", [TURIN], "too large"
    ),
    "vllm pythonic: infinity beside": (
        WRONG, f"[brew(x=1e999), {FORECAST}]", [TURIN], "too large"
    ),
    "vllm pythonic: a wrong quote beside": (
        WRONG, f"[{FORECAST}, find(a='x 'y', b='z')]", [TURIN], "should come after"
    ),
    "sglang llama 3.2: broken JSON before": (
        WRONG, '{"name": "find", "parameters": {' + LIST, [OPEN], "must be a text"
    ),
    "mlx-vlm pythonic: quotes within quotes": (
        "guesses", '[write(path="a.html", content="<p id="b">\n</p>")]',
        [("write", {"path": "a.html", "content": '<p id="b">\n</p>'})], "should come after",
    ),
}  # fmt: skip


def _calls(calls: Calls) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(name, arguments) for name, arguments in calls)


@pytest.mark.parametrize("shape", READ)
def test_read_as_peers_read_it(shape: str) -> None:
    said, text, calls = READ[shape]
    reply = parse_reply(said, NAMES)
    assert (reply.text.strip(), reply.calls) == (text.strip(), _calls(calls))


@pytest.mark.parametrize("shape", DIFFERENT)
def test_read_in_another_way_on_purpose(shape: str) -> None:
    _, said, _, refusal = DIFFERENT[shape]
    reply = parse_reply(said, NAMES)
    assert reply.calls == ()
    assert reply.text.strip() == said.replace(START, "").replace(END, "")
    assert refusal in reply.refused if refusal else reply.refused is None


@pytest.mark.parametrize("shape", [shape for shape in DIFFERENT if DIFFERENT[shape][0] == WORDS])
def test_marks_make_calls_of_them(shape: str) -> None:
    _, said, calls, _ = DIFFERENT[shape]
    for call in (FIND, LIST, f"[{FORECAST}]", "[find(query='one')]"):
        said = said.replace(call, f"{START}{call}{END}")
    assert parse_reply(said, NAMES).calls == _calls(calls)


def test_a_known_tool_named_alone_is_called() -> None:
    """vLLM takes {"name": …} alone for words. A tool that takes nothing is called so, and words
    that happen to be the JSON of a tool's name are rare.
    """
    assert parse_reply('{"name": "list_open"}', NAMES).calls == _calls([OPEN])
    assert parse_reply('{"name": "list_shut"}', NAMES) == Reply('{"name": "list_shut"}')
