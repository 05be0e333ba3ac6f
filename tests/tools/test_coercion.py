"""Arguments as models write them, for the types that a tool names."""

from pathlib import Path
from typing import Any, Literal

import pytest

from mlx_llama4.prompt.replies import ToolCall
from mlx_llama4.tools.coercion import coerced
from mlx_llama4.tools.schemas import schema_of
from mlx_llama4.tools.tool_file import ToolFile

TOOLS = """
def get_weather(location: str, days: int = 1, metric: bool = True) -> str:
    "Weather."
    return f"{location!r} {days!r} {metric!r}"

def none() -> str:
    "Nothing."
    return "ok"

def literal(properties: dict[str, int]) -> str:
    "Takes what others are wrapped in."
    return repr(properties)
"""


@pytest.mark.parametrize(
    ("annotation", "written", "meant"),
    [
        (int, 3.0, 3),
        (int, -0.0, 0),
        (int, "3", 3),
        (int, " -12 ", -12),
        (float, "2.5", 2.5),
        (float, "1e3", 1000.0),
        (float, "3", 3),
        (bool, "true", True),
        (bool, "False", False),
        (list[int], ["1", 2.0, 3], [1, 2, 3]),
        (dict[str, float], {"a": "0.5"}, {"a": 0.5}),
        (int | None, "7", 7),
        (Literal[1, 2], "2", 2),
        (list[bool] | None, ["true"], [True]),
    ],
)
def test_what_is_meant(annotation: Any, written: Any, meant: Any) -> None:
    found = coerced(written, schema_of(annotation))
    assert found == meant and type(found) is type(meant)


@pytest.mark.parametrize(
    ("annotation", "written"),
    [
        (int, 3.5),
        (int, "3.0"),
        (int, "three"),
        (int, "0x10"),
        (int, "9" * 41),
        (int, True),
        (int, 1e300),
        (int, "٣"),
        (float, "nan"),
        (float, "1e999"),
        (bool, "yes"),
        (bool, 1),
        (str, 3),
        (list[int], "3"),
        (Literal["a"], "b"),
    ],
)
def test_what_stays_as_it_is(annotation: Any, written: Any) -> None:
    assert coerced(written, schema_of(annotation)) is written or isinstance(written, list)


def test_a_text_stays_where_a_text_is_allowed() -> None:
    assert coerced("3", schema_of(int | str)) == "3"
    assert coerced("true", schema_of(bool | str)) == "true"


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> ToolFile:
    path: Path = tmp_path_factory.mktemp("tools") / "tools.py"
    path.write_text(TOOLS)
    return ToolFile.open(path)


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ({"location": "Paris", "days": 3.0}, "'Paris' 3 True"),
        ({"location": "Paris", "days": "3", "metric": "false"}, "'Paris' 3 False"),
        ({"properties": {"location": "Tokyo"}}, "'Tokyo' 1 True"),
        ({"parameters": {"location": "Tokyo", "days": "2"}}, "'Tokyo' 2 True"),
    ],
)
def test_calls(tools: ToolFile, arguments: dict[str, Any], result: str) -> None:
    call = ToolCall("get_weather", arguments)
    assert tools.check(call) is None
    assert tools.run(call) == result
    assert repr(tools.prepared(call).arguments) != repr(
        arguments
    )  # and this is what a user is shown


def test_calls_that_stay_wrong(tools: ToolFile) -> None:
    for arguments in ({"location": "Paris", "days": "soon"}, {"location": "Paris", "days": 1.5}):
        assert "days must be an integer" in tools.check(ToolCall("get_weather", arguments))
    wrapped = ToolCall("literal", {"properties": {"a": 1}})
    assert tools.prepared(wrapped) == wrapped
    assert tools.check(ToolCall("none", {"properties": 3})) is not None
    unknown = ToolCall("unknown", {"properties": {}})
    assert tools.prepared(unknown) == unknown
