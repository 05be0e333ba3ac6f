"""A sandbox for chat templates that ends each within a limit of steps, time and text.

Jinja's own sandbox keeps a template from everything but its variables, yet lets it loop for ever or
build a text of any length. Here the template's syntax tree is changed before it is compiled: each
turn of a loop, each assignment, condition and joining of texts counts. Calls, filters and operators
count, too, and those that could make something endless at once are looked at before they are run.
All of it is Python in the calling thread, so Ctrl-C and the limits work in any thread.
"""

# ruff: noqa: N802, N815 (Jinja calls its visitors by the names of its nodes)

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, cast

from jinja2 import nodes
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context, pass_environment
from jinja2.visitor import NodeTransformer

MOST_SOURCE = 2**18  # characters of a template; the released one has 5,000
MOST_STEPS = 1_000_000
MOST_SECONDS = 10.0  # of the thread's processor time
MOST_TEXT = 2**22  # characters of one value, and of the result, above what the messages have
MOST_MADE = 2**26  # characters of all values together
MOST_NUMBER = 100_000  # as an argument: a width, a count
MOST_BITS = 10_000  # of a whole number
CLOCK_STEPS = 16  # between two looks at the clock
# Filters and functions without use here whose work nothing bounds.
LEFT_OUT = ("urlize", "lipsum")
# Filters that do not look into the parts of a list.
SHALLOW = frozenset(
    [
        "abs",
        "attr",
        "batch",
        "count",
        "d",
        "default",
        "dictsort",
        "first",
        "float",
        "groupby",
        "int",
        "items",
        "join",
        "last",
        "length",
        "list",
        "map",
        "max",
        "min",
        "reject",
        "rejectattr",
        "reverse",
        "round",
        "select",
        "selectattr",
        "slice",
        "sort",
        "sum",
        "unique",
    ]
)


class TemplateLimitError(Exception):
    """A template wants more than it may have."""


class Meter:
    """Counts what a template does. extra: characters of the messages that it is given."""

    def __init__(self, extra: int = 0):
        self.most_text = MOST_TEXT + 4 * extra
        self.most_made = MOST_MADE + 64 * extra
        self.steps = self.made = self.written = 0
        self.until = time.thread_time() + MOST_SECONDS

    def step(self, count: int = 1) -> None:
        self.steps += count
        if self.steps > MOST_STEPS:
            raise TemplateLimitError(f"it takes more than {MOST_STEPS:,} steps")
        if self.steps % CLOCK_STEPS < count and time.thread_time() > self.until:
            raise TemplateLimitError(f"it takes more than {MOST_SECONDS:g} seconds")

    def room(self, size: int) -> None:
        """Raise TemplateLimitError if a value of `size` characters or items is too large."""
        if size > self.most_text:
            raise TemplateLimitError(
                f"it makes a text or list of more than {self.most_text:,} parts"
            )

    def write(self, size: int) -> None:
        # The text of both branches of a condition counts, and what macros pass on counts again.
        self.written += size
        self.room(self.written // 8)

    def keep(self, value: Any) -> Any:
        """Return a value that was just made, unless it is too large."""
        self.step()
        if isinstance(value, str | bytes | list | tuple | dict):
            self.room(len(value))
            self.spend(len(value))
        return value

    def spend(self, size: int) -> None:
        self.made += size
        if self.made > self.most_made:
            raise TemplateLimitError(f"it makes more than {self.most_made:,} characters")

    def walk(self, value: Any) -> None:
        """Measure a value with all that is in it. A list that holds another twice, and so on, is
        short, but endless as a text.
        """
        count, size, left = 0, 0, [value]
        while left:
            one = left.pop()
            count += 1
            size += len(one) if isinstance(one, str) else 1
            self.room(size)
            if isinstance(one, Mapping):
                left += [*one.keys(), *one.values()]
            elif isinstance(one, list | tuple | set | frozenset):
                self.room(size + len(one))
                left += one
        self.step(1 + count // 100)

    def text(self, value: Any) -> str:
        if not isinstance(value, str):
            self.walk(value)
        return str(value)


_METER: ContextVar[Meter | None] = ContextVar("template meter", default=None)


@contextlib.contextmanager
def metered(extra: int = 0) -> Iterator[None]:
    """Limit what templates do in here. extra: characters of the messages that they are given."""
    token = _METER.set(Meter(extra))
    try:
        yield
    finally:
        _METER.reset(token)


def _meter() -> Meter:
    return _METER.get() or Meter()


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox, whose templates must be compiled and rendered in `metered`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, filters: Mapping[str, Callable[..., Any]], **options: Any):
        super().__init__(finalize=_finalize, **options)
        self.filters |= {**filters, "join": _join}
        for table in (self.filters, self.globals):
            for name in LEFT_OUT:
                table.pop(name, None)
        for name, function in self.filters.items():
            self.filters[name] = _limited(name, function)
        self.filters |= {"_step": _step, "_kept": _kept, "_text": _text}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MOST_SOURCE:
            raise TemplateLimitError(f"it is longer than {MOST_SOURCE:,} characters")
        tree = super()._parse(source, name, filename)
        return _Counting().visit(tree).set_environment(self)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = _meter()
        if operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(one, str | bytes | list | tuple) and isinstance(times, int):
                    meter.room(len(one) * times)
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            times = right if operator == "**" else 1
            if left.bit_length() * max(times, 1) + right.bit_length() > MOST_BITS:
                raise TemplateLimitError("it computes with endless numbers")
        if operator == "%" and isinstance(left, str):
            _check_format(meter, left, "%", right if isinstance(right, tuple) else (right,))
        return meter.keep(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The sandbox's own format method of a text, looked at first."""
        format_ = super().wrap_str_format(value)
        if format_ is None:
            return None

        @functools.wraps(format_)
        def run(*args: Any, **kwargs: Any) -> str:
            _check_format(_meter(), value.__self__, "{", [*args, *kwargs.values()])
            return format_(*args, **kwargs)

        return run

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter = _meter()
        meter.step()
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str) or name in ("format", "format_map"):
            args = _check_method(meter, owner, name, args, kwargs)
        elif function is self.globals.get("range"):
            pass  # Jinja's sandbox limits it
        elif name != "strftime_now":
            for value in (*args, *kwargs.values()):
                meter.walk(value) if isinstance(value, list | tuple) else None
        return meter.keep(super().call(context, function, *args, **kwargs))


class _Counting(NodeTransformer):
    """Adds filters that count to a template's syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        counted = _filter(nodes.Const(True), "_step", nodes.Const(1 + _text_length(node.body)))
        if node.test is not None:
            node.test = nodes.And(counted, node.test, lineno=node.lineno)
        else:
            node.body.insert(0, nodes.ExprStmt(counted, lineno=node.lineno))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        counted = _filter(nodes.Const(True), "_step", nodes.Const(1 + _text_length(node.body)))
        node.body.insert(0, nodes.ExprStmt(counted, lineno=node.lineno))
        return node

    visit_CallBlock = visit_Block = visit_Macro

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_filter(child, "_text") for child in node.nodes]
        return _filter(node, "_kept")

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_kept", nodes.Const(True)) if node.items else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_kept", nodes.Const(True)) if node.items else node

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.node, nodes.Tuple):  # which may be taken apart again
            node.node = _filter(node.node, "_kept")
        return node

    def visit_If(self, node: nodes.If) -> nodes.Node:
        self.generic_visit(node)
        node.test = _filter(node.test, "_kept")
        return node


def _filter(node: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(cast("nodes.Expr", node), name, [*args], [], None, None, lineno=node.lineno)


def _text_length(body: list[nodes.Node]) -> int:
    """Characters of a body's own text, without those of loops and macros in it."""
    length, left = 0, [*body]
    while left:
        node = left.pop()
        if isinstance(node, nodes.TemplateData):
            length += len(node.data)
        elif not isinstance(node, nodes.For | nodes.Macro):
            left += node.iter_child_nodes()
    return length


@pass_context
def _step(context: Context, value: Any, characters: int) -> Any:
    meter = _meter()
    meter.step()
    meter.write(characters - 1)
    return value


@pass_context
def _kept(context: Context, value: Any, whole: bool = False) -> Any:
    meter = _meter()
    if whole:
        meter.walk(value)
    return meter.keep(value)


@pass_context
def _text(context: Context, value: Any) -> str:
    return _meter().text(value)


@pass_context
def _finalize(context: Context, value: Any) -> str:
    meter = _meter()
    meter.step()
    text = meter.text(value)
    meter.write(len(text))
    return text


@pass_environment
def _join(environment: Any, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    """Jinja's, for texts without markup, that looks at the length first."""
    meter = _meter()
    items = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    texts, length, between = [], 0, meter.text(d)
    for item in items:
        texts.append(meter.text(item))
        length += len(texts[-1]) + len(between)
        meter.room(length)
    return between.join(texts)


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts, and whose arguments are looked at first."""
    first = int(hasattr(function, "jinja_pass_arg"))

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        meter = _meter()
        value, others = args[first], [*args[first + 1 :], *kwargs.values()]
        _check_numbers(others)
        if name not in SHALLOW and not isinstance(value, str):
            meter.walk(value)
        if name == "format":
            _check_format(meter, str(value), "%", others)
        elif name == "replace":
            _check_replace(meter, str(value), *map(str, others[:2]))
        elif name in ("indent", "wordwrap", "tojson", "truncate", "batch", "slice"):
            for other in others:
                # A width comes before each line, a text between any two words.
                width = other if isinstance(other, int) else len(str(other))
                lines = str(value).count("\n") + 1 if name == "indent" else 1
                meter.room(lines * width)
                meter.spend(lines * width)
                if name in ("tojson", "wordwrap") and width > 1000:
                    raise TemplateLimitError(f"{name} has an argument that is too large")
        return meter.keep(function(*args, **kwargs))

    return run


def _check_method(
    meter: Meter, owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Look at a call of a text's method; return its arguments, with lists for iterators."""
    others = [*args, *kwargs.values()]
    if name in ("format", "format_map"):
        _check_format(meter, str(owner or ""), "{", others)
        return args
    _check_numbers(others)
    if name == "join" and args:
        items = args[0] if isinstance(args[0], str | list | tuple | dict) else [*args[0]]
        meter.room(sum(len(item) + len(owner) for item in items if isinstance(item, str)))
        return (items, *args[1:])
    if name == "replace" and len(others) > 1:
        _check_replace(meter, owner, *map(str, others[:2]))
    if name == "expandtabs":
        widths = [one for one in others if isinstance(one, int)]
        meter.room(owner.count("\t") * max([8, *widths]))
    if name == "translate":
        raise TemplateLimitError("it uses translate, which nothing bounds")
    return args


def _check_numbers(values: list[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > MOST_NUMBER for value in values):
        raise TemplateLimitError(f"it uses a width or count above {MOST_NUMBER:,}")


def _check_replace(meter: Meter, text: str, old: str = "", new: str = "") -> None:
    meter.room(len(text) + text.count(old) * max(len(new) - len(old), 0))


def _check_format(meter: Meter, text: str, mark: str, values: Any) -> None:
    """Look at a format with its values before they are put together."""
    if mark == "%" and "*" in text:
        _check_numbers(list(values))
    for value in values:
        meter.walk(value)
    widths = [int(digits) if len(digits) < 9 else 10**9 for digits in re.findall(r"\d+", text)]
    longest = max((len(meter.text(value)) for value in values), default=0)
    meter.room(len(text) + sum(widths) + text.count(mark) * longest)
