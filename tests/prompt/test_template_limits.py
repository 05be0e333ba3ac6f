"""Templates that loop, grow or nest without end are stopped in one line; others run as before."""

# ruff: noqa: E501 (a template a line)

import random
import threading

import pytest

from mlx_llama4.errors import InputError, PromptError
from mlx_llama4.prompt import template_limits
from mlx_llama4.prompt.chat_template import ChatTemplate, PlainText
from mlx_llama4.prompt.template_source import DEFAULT_TEMPLATE

HI = [{"role": "user", "content": "hi"}]
NAMES = ("<|eot|>", "<|image|>", "<|header_start|>", "<|header_end|>", "<|begin_of_text|>")
LOOP = "{% for i in range(100000) %}"
END = "{% endfor %}"
BIG = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = "

ENDLESS = {
    "loops": LOOP * 3 + "a" + END * 3,
    "empty loops": LOOP * 3 + END * 3,
    "filtered loops": LOOP + "{% for j in range(100000) if j < 0 %}" + END * 2,
    "text in loops": LOOP + "x" * 100_000 + END,
    "text in macros": "{% macro m() %}" + "x" * 50_000 + "{% endmacro %}" + LOOP + "{{ m() }}" + END,
    "set blocks": LOOP + "{% set a %}" + "x" * 100_000 + "{% endset %}" + END,
    "product": "{{ 'a' * 10000000000 }}",
    "product of a list": "{{ [1] * 10000000000 }}",
    "product of products": "{{ ('a' * 4000000) * 4000000 }}",
    "joined": BIG + "ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "sum": BIG + "ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "list of itself": BIG + "[ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "dict of itself": BIG + "{1: ns.x, 2: ns.x} %}{% endfor %}{{ ns.x | tojson }}",
    "sum of lists": BIG.replace("'ab'", "[1]") + "ns.x + ns.x %}{% endfor %}",
    "sums in a list": BIG + "[ns.x] + [ns.x] %}{% endfor %}{{ ns.x | string }}",
    "power": "{{ 10 ** 10000000000 }}",
    "powers": "{{ ((9 ** 3000) ** 3000) ** 3000 }}",
    "center": "{{ 'a' | center(10000000000) }}",
    "ljust": "{{ 'a'.ljust(10000000000) }}",
    "zfill": "{{ 'a'.zfill(10000000000) }}",
    "format": "{{ '%10000000000d' | format(1) }}",
    "star": "{{ '%*d' % (10000000000, 1) }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "method format": "{{ '{:>10000000000}'.format('a') }}",
    "many formats": "{{ ('{0}' * 10000).format('a' * 1000000) }}",
    "indent": "{{ ('\\n' * 1000000) | indent(100000) }}",
    "json": "{{ range(100000) | list | tojson(indent=100000) }}",
    "replace": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "replace filter": "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "replace nothing": "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "join": "{{ (['a' * 1000000] * 1000000) | join }}",
    "join method": "{{ ''.join(['a' * 1000000] * 1000000) }}",
    "join by": "{{ ('a' * 1000000) | join('b' * 1000000) }}",
    "tabs": "{{ ('\\t' * 1000000).expandtabs(100000) }}",
    "wrap": "{{ ('a ' * 1000000) | wordwrap(1, True, 'b' * 1000000) }}",
    "batch": "{{ [1] | batch(10000000000, 0) | list }}",
    "batches": "{{ range(100000) | batch(1, 0) | map('batch', 100000, 0) | map('list') | list }}",
    "recursive macro": "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "tree of macros": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}"
    "{{ m(50) }}",
    "recursive loop": "{% for i in [[1]] recursive %}{{ loop([i]) }}{{ loop([i]) }}{% endfor %}",
    "recursive block": "{% block a %}{{ self.a() }}{% endblock %}",
    "nested ifs": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "nested loops": "{% for i in [1] %}" * 60 + END * 60,
    "brackets": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "lists": "{{ " + "[" * 20_000 + "]" * 20_000 + " }}",
    "nots": "{{ " + "not " * 20_000 + "1 }}",
    "filters": "{{ 1" + " | string" * 20_000 + " }}",
    "long": "a" * 300_000,
    "lorem": "{{ lipsum(n=100000) }}",
    "links": "{{ ('a.' * 1000000) | urlize }}",
    "keeps all": "{% set ns = namespace(x=[]) %}" + LOOP
    + "{% set ns.x = ns.x + ['a' * 1000000 ~ i] %}" + END,
}  # fmt: skip


def rendered(source: str, text: str = "hi") -> str:
    pieces = ChatTemplate(source, NAMES, {}).render([{"role": "user", "content": text}], True)
    return "".join(piece.text for piece in pieces if isinstance(piece, PlainText))


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_is_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here by fewer steps, so that it takes less time."""
    monkeypatch.setattr(template_limits, "MOST_STEPS", 20_000)
    with pytest.raises(InputError, match="template") as caught:
        rendered(ENDLESS[name])
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 2000


def test_limits_hold_in_threads() -> None:
    found: list[BaseException] = []

    def work() -> None:
        try:
            rendered(ENDLESS["joined"])
        except BaseException as failure:
            found.append(failure)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(failure) for failure in found] == [PromptError] * 3


def test_ctrl_c_ends_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: template_limits.Meter, count: int = 1) -> None:
        raise KeyboardInterrupt

    template = ChatTemplate(ENDLESS["empty loops"], NAMES, {})
    monkeypatch.setattr(template_limits.Meter, "step", step)
    with pytest.raises(KeyboardInterrupt):
        template.render(HI, True)


def test_processor_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(0, 10**9, 4))
    monkeypatch.setattr(template_limits.time, "thread_time", lambda: next(times))
    with pytest.raises(PromptError, match="was stopped: it takes more than 10 seconds"):
        rendered(LOOP + END)


USUAL = {
    "{{ messages[0].content | upper }}": "HI",
    "{{ [1, 2, 3] | join(', ') }}{{ ', '.join(['a', 'b']) }}": "1, 2, 3a, b",
    "{{ messages | map(attribute='role') | join('-') }}": "user",
    "{{ '%s=%d' % ('a', 3) }}{{ '%5s' | format('b') }}{{ '{:>3}{}'.format('c', 1) }}": "a=3    b  c1",
    "{% for m in messages %}{{ loop.index0 }}{{ loop.last }}{{ loop.length }}{% endfor %}": "0True1",
    "{% for i in range(9) if i % 2 %}{{ i }}{% endfor %}": "1357",
    "{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% else %}no{% endfor %}": "a1",
    "{% for i in [] %}{% else %}none{% endfor %}": "none",
    "{% set a, b = 1, 2 %}{{ a + b }}{{ 'x' * 3 }}{{ 2 ** 10 }}": "3xxx1024",
    "{% set ns = namespace(t='') %}{% for c in 'abc' %}{% set ns.t = ns.t + c %}{% endfor %}"
    "{{ ns.t }}": "abc",
    "{% macro m(x, y=2) %}{{ x }}{{ y }}{{ caller() if caller }}{% endmacro %}{{ m(1) }}"
    "{% call m(3) %}!{% endcall %}": "1232!",
    "{{ nothing }}{{ nothing is defined }}{{ none }}{{ true }}": "FalseNoneTrue",
    "{% filter upper %}a{% endfilter %}{{ 'a b'.split(' ') | last }}": "Ab",
    "{{ {'a': [1, none]} | tojson }}{{ [1] | tojson(indent=2) }}": '{"a": [1, null]}[\n  1\n]',
    "{% for i in [[1, [2]]] recursive %}{{ i if i is number else loop(i) }}{% endfor %}": "12",
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}"
    "{% endif %}{{ i }}{% endfor %}": "02",
    "{{ 'a\tb'.expandtabs(4) }}{{ 'aXb'.replace('X', '--') }}{{ 'a' | center(3) }}": "a   ba--b a ",
    "{{ 1700000000 }}{{ '%d' % 1700000000 }}{{ 10000000000 | string }}": "1700000000170000000010000000000",
}


@pytest.mark.parametrize("source", USUAL)
def test_what_templates_do_usually(source: str) -> None:
    # A template that leaves the message out is refused.
    assert rendered(source + "|{{ messages[0].content }}") == USUAL[source] + "|hi"


def test_long_conversations_are_let_through() -> None:
    text = "word " * 200_000
    messages = [
        {"role": "user" if index % 2 else "assistant", "content": text[: 1000 + index]}
        for index in range(2000)
    ]
    messages.append({"role": "user", "content": text})
    pieces = ChatTemplate(DEFAULT_TEMPLATE, NAMES, {}).render(messages, True)
    assert len(pieces) > 5000


def mutated(source: str, chance: random.Random) -> str:
    """A template with a few pieces cut, doubled, moved or replaced."""
    words = ["{%", "%}", "{{", "}}", "for", "in", "range(99999)", "(", ")", "~", "*", "9" * 9, "|",
             "messages", "tojson", "recursive", "loop(", "\x1b[2J", "\0", "if", "endif", "[0]",
             ".x", "'", "{#", "set a =", "**", "endfor", "%", "macro m()", "endmacro", "m()"]  # fmt: skip
    for _ in range(chance.randint(1, 5)):
        a, b = sorted(chance.choices(range(len(source) + 1), k=2))
        b = min(b, a + 80)
        piece = chance.choice(["", source[a:b] * chance.randint(2, 9), chance.choice(words)])
        source = source[:a] + piece + source[chance.choice([a, b]) :]
    return source


def fuzz(count: int, seed: int) -> None:
    chance = random.Random(seed)
    sources = [DEFAULT_TEMPLATE, *USUAL]
    for _ in range(count):
        source = mutated(chance.choice(sources), chance)
        try:
            rendered(source)
        except InputError as refusal:
            text = str(refusal)
            assert text.isprintable() and len(text) <= 2000, source


def test_mutated_templates() -> None:
    fuzz(150, 0)


@pytest.mark.slow
def test_many_mutated_templates() -> None:
    fuzz(1500, 1)
