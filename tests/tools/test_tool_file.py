"""A user's file of functions → definitions; calls of them in a process that can do no harm here."""

import ast
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mlx_llama4.errors import InputError
from mlx_llama4.prompt.replies import ToolCall
from mlx_llama4.tools import worker_process
from mlx_llama4.tools.tool_file import ToolFile

TOOLS = '''\
"""A file of tools."""
import os, subprocess, sys, threading, time
from enum import Enum
from typing import Annotated, Literal, Optional

import helper


class Unit(Enum):
    celsius = "°C"
    fahrenheit = "°F"


def get_weather(city: str, unit: Unit = Unit.celsius, days: Annotated[int, "How many."] = 1) -> str:
    """The weather
    of a city.

    More about it.

    Args:
        city (str): The city, maybe
            with: its country.
        unit: Which.

    Returns:
        text: a text
    """
    return f"{city} {unit} {days}"


def total(
    numbers: list[float],
    *,
    how: Literal["sum", "mean"] = "sum",
    note: str | None = None,
    names: "Optional[dict[str, list[int]]]" = None,
):
    """Adds. """
    return {"of": numbers, "how": how, "note": note, "names": names}


def prints(text: str, result: bool = False):
    """Prints."""
    print(text)
    print("not to be seen", file=sys.stderr)
    return helper.RESULT if result else None


def evaluates(code: str):
    """Whatever a tool may do."""
    return eval(code)


def _hidden(x):
    pass


Class = Unit
path = os.path
'''
HELPER = 'RESULT = "from a file beside"\n\ndef outside(x: int):\n    """Not of this file."""\n'


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> ToolFile:
    folder = tmp_path_factory.mktemp("my tools")
    (folder / "helper.py").write_text(HELPER)
    (folder / "ours.py").write_text("from helper import outside\n" + TOOLS)
    return ToolFile.open(folder / "ours.py")


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments)


def evaluate(code: str) -> ToolCall:
    return call("evaluates", code=code)


def test_definitions(tools: ToolFile) -> None:
    assert tools.names == ["get_weather", "total", "prints", "evaluates"]
    weather, total, *_ = (definition["function"] for definition in tools.definitions)
    assert tools.definitions[0]["type"] == "function"
    assert weather == {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city, maybe with: its country."},
                "unit": {
                    "type": "string",
                    "enum": ["°C", "°F"],
                    "description": "Which.",
                    "default": "°C",
                },
                "days": {"type": "integer", "description": "How many.", "default": 1},
            },
            "required": ["city"],
        },
    }
    integers = {"type": "array", "items": {"type": "integer"}}
    assert total["description"] == "Adds."
    assert total["parameters"] == {
        "type": "object",
        "properties": {
            "numbers": {"type": "array", "items": {"type": "number"}},
            "how": {"type": "string", "enum": ["sum", "mean"], "default": "sum"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "names": {
                "anyOf": [{"type": "object", "additionalProperties": integers}, {"type": "null"}]
            },
        },
        "required": ["numbers"],
    }
    for definition in tools.definitions:
        jsonschema.Draft202012Validator.check_schema(definition["function"]["parameters"])


def test_all_says_what_is_offered(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text(HELPER)
    file = tmp_path / "tools.py"
    file.write_text("__all__ = ['prints', 'outside']\nfrom helper import outside\n" + TOOLS)
    assert ToolFile.open(file).names == ["prints", "outside"]


def test_results(tools: ToolFile) -> None:
    """Texts as they are, other values as JSON, what was printed behind it."""
    assert tools.run(call("get_weather", city="Zürich <|eot|>\n", unit="°F")) == (
        "Zürich <|eot|>\n Unit.fahrenheit 1"
    )
    given = {"numbers": [1, 2.5], "how": "mean", "note": None, "names": {"a": [1]}}
    said = '{"of": [1.0, 2.5], "how": "mean", "note": null, "names": {"a": [1]}}'
    assert tools.run(ToolCall("total", given)) == said
    assert tools.run(call("prints", text="é\nb")) == "é\nb"
    assert tools.run(call("prints", text="é", result=True)) == "from a file beside\né"
    assert tools.run(evaluate("None")) == "null"
    assert tools.run(evaluate("'\\ud800'")) == "?"
    assert tools.run(evaluate("{1}")) == '"{1}"'
    assert tools.run(evaluate("sys.stdin.read()")) == ""


def test_failures_are_texts(tools: ToolFile) -> None:
    assert tools.run(evaluate("1/0")) == "error: ZeroDivisionError: division by zero"
    assert tools.run(evaluate("1 +")).startswith("error: SyntaxError: ")
    assert tools.run(evaluate("sys.exit(3)")) == "error: SystemExit: 3"
    assert tools.run(evaluate("[].pop(KeyboardInterrupt())")).startswith("error: TypeError: ")
    assert tools.run(evaluate("os._exit(3)")) == (
        "error: the tool ended Python with exit code 3 and no result"
    )
    assert tools.run(evaluate("os.kill(os.getpid(), 9)")) == (
        "error: the tool was killed by signal 9"
    )
    for said in (b"}{\n", b"[]\n", b"{}\n", b"1\n"):
        forged = evaluate(f"os.write(int(__import__('sys').argv[1]), {said}) and os._exit(0)")
        assert tools.run(forged) == "error: the tool has written into the answer's pipe"


BAD_CALLS = {
    "there is no tool outside; there are: get_weather, total": call("outside", x=1),
    "there is no tool _hidden": call("_hidden", x=1),
    "get_weather needs the argument city": call("get_weather"),
    "get_weather has no argument town; its arguments: city, unit, days": call(
        "get_weather", city="x", town="y"
    ),
    "city must be a text, not 5": call("get_weather", city=5),
    "days must be an integer, not True": call("get_weather", city="x", days=True),
    "days must be an integer, not 'one'": call("get_weather", city="x", days="one"),
    "days must be an integer, not 1.5": call("get_weather", city="x", days=1.5),
    "unit must be one of '°C', '°F', not 'K'": call("get_weather", city="x", unit="K"),
    "numbers must be a list, not {}": call("total", numbers={}),
    "numbers[1] must be a number, not 'x'": call("total", numbers=[1, "x"]),
    "numbers[0] must be a number, not False": call("total", numbers=[False]),
    "note must be a text or null, not []": call("total", numbers=[], note=[]),
    "names must be an object or null, not {'a': ['": call("total", numbers=[], names={"a": ["b"]}),
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_arguments_are_checked_before_anything_runs(
    tools: ToolFile, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    problem = tools.check(BAD_CALLS[message])
    assert problem.startswith(f"error: {message}")
    assert tools.run(BAD_CALLS[message]) == problem


def test_long_outputs_are_cut(tools: ToolFile) -> None:
    text = tools.run(evaluate("'é' * 50_000"))
    assert text == "é" * 20_000 + "\n[cut: the first 20,000 of 50,000 characters]"
    text = tools.run(evaluate("print('x' * 3_000_000)"))
    assert text.startswith("x" * 20_000 + "\n[cut: the first 20,000 of ")
    assert text.endswith(" bytes more were printed]")


def process_lives(process_id: int) -> bool:
    """Also false for one that has ended and nobody has waited for, as children of PID 1 here."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return False
        return sys.platform != "linux"
    return status != "Z"


def assert_ends(process_id: int) -> None:
    for _ in range(100):
        if not process_lives(process_id):
            return
        time.sleep(0.02)
    os.kill(process_id, signal.SIGKILL)
    raise AssertionError(f"process {process_id} lives on")


def test_a_tool_that_does_not_end(tools: ToolFile) -> None:
    started = time.monotonic()
    result = tools.run(evaluate("time.sleep(60)"), timeout_seconds=0.3)
    assert result == "error: no result within 0.3 seconds; it was stopped"
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_what_a_tool_that_does_not_end_has_done(tools: ToolFile, tmp_path: Path) -> None:
    """It and what it has started are gone; what it has printed until then is told."""
    note = tmp_path / "children"
    code = f"""[
        print("so far", flush=True),
        (child := subprocess.Popen(["sleep", "60"])),
        open({str(note)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}"),
        time.sleep(60),
    ]"""
    result = tools.run(evaluate(textwrap.dedent(code)), timeout_seconds=3)
    assert result == "error: no result within 3 seconds; it was stopped\nso far"
    for process_id in map(int, note.read_text().split()):
        assert_ends(process_id)


@pytest.mark.slow
def test_a_tool_that_prints_for_ever(tools: ToolFile) -> None:
    result = tools.run(evaluate("[print('x' * 9999) for _ in iter(int, 1)]"), timeout_seconds=2)
    assert result.startswith("error: no result within 2 seconds; it was stopped\nxxx")
    assert len(result) < 21_000


def test_what_a_tool_leaves_running(tools: ToolFile) -> None:
    """A process that holds the pipes open, one in its own group, and a thread."""
    for options in ("", ", start_new_session=True"):
        code = f"subprocess.Popen(['sleep', '60'], close_fds=False{options}).pid"
        started = time.monotonic()
        process_id = int(tools.run(evaluate(code)))
        assert time.monotonic() - started < 20
        if options:
            os.kill(process_id, signal.SIGKILL)  # it has left on purpose
        assert_ends(process_id)


def test_ctrl_c_ends_the_tool(tools: ToolFile, tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def interrupt() -> None:
        while not (note.exists() and note.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    code = f"[open({str(note)!r}, 'w').write(str(os.getpid())), time.sleep(60)]"
    with pytest.raises(KeyboardInterrupt):
        tools.run(evaluate(code), timeout_seconds=50)
    assert_ends(int(note.read_text()))


def test_a_file_that_has_changed_is_not_run(tmp_path: Path) -> None:
    """What was allowed was what was there: a tool may have written to it."""
    file = tmp_path / "tools.py"
    file.write_text('def f() -> str:\n    """F."""\n    return "f"\n')
    tools = ToolFile.open(file)
    assert tools.run(call("f")) == "f"
    file.write_text(file.read_text().replace('"f"', '"g"'))
    assert tools.run(call("f")) == (
        "error: tools.py has changed since it was opened; start the chat again"
    )
    file.unlink()
    assert "No such file" in tools.run(call("f"))


BAD_FILES = {
    "it has no function": "x = 1",
    "line 2: invalid syntax": "x = 1\nx = = 2",
    "it fails in line 2: ZeroDivisionError: division by zero": "x = 1\n1/0",
    "it fails in line 1: SystemExit: 3": "raise SystemExit(3)",
    "it fails in line 1: ModuleNotFoundError: No module named 'nowhere'": "import nowhere",
    "the tool ended Python with exit code 7": "import os; os._exit(7)",
    "f has no docstring; say in one": "def f(a: int): pass",
    "g has no docstring": 'def f():\n  "F."\ndef g():\n  """Args:\n    a: b"""',
    "f: the parameter a has no type; write a: str, say": 'def f(a):\n  "F."',
    "f: the parameter a has the type set; use str, int": 'def f(a: set):\n  "F."',
    "f: the parameter a has the type dict[int, str]; use": 'def f(a: dict[int, str]):\n  "F."',
    "f: the parameter a has the type typing.Literal[1, 'a'], whose values are not all": (
        'from typing import Literal\ndef f(a: Literal[1, "a"]):\n  "F."'
    ),
    "f has an invalid type: name 'Nope' is not defined": 'def f(a: "Nope"):\n  "F."',
    "f takes *a: int, which cannot be given by name": 'def f(*a: int):\n  "F."',
    "f takes **a: int, which cannot": 'def f(**a: int):\n  "F."',
    "f takes a: int, which cannot": 'def f(a: int, /):\n  "F."',
    "f is async; make it a plain function": 'async def f():\n  "F."',
    "__all__ names g, which is not a function": '__all__ = ["g"]',
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_files_that_are_no_tools(message: str, tmp_path: Path) -> None:
    file = tmp_path / "tools.py"
    file.write_text(BAD_FILES[message])
    with pytest.raises(InputError) as caught:
        ToolFile.open(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.py does not exist; --tools takes a Python file"):
        ToolFile.open(tmp_path / "none.py")
    with pytest.raises(InputError, match="is not a file"):
        ToolFile.open(tmp_path)
    (tmp_path / "binary.py").write_bytes(b"\x00\xff")
    with pytest.raises(InputError, match=r"binary\.py: it is not valid Python|it fails"):
        ToolFile.open(tmp_path / "binary.py")
    (tmp_path / "slow.py").write_text("import time; time.sleep(60)")
    with pytest.raises(InputError, match=r"no result within 0\.3 seconds"):
        ToolFile.open(tmp_path / "slow.py", timeout_seconds=0.3)


def test_modules_in_the_working_folder_are_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("json.py", "hashlib.py", "mlx_llama4.py"):
        (folder / name).write_text("raise SystemExit('taken in')")
    monkeypatch.chdir(folder)
    (tmp_path / "tools.py").write_text('def f():\n  "F."\n  return 5')
    assert ToolFile.open(Path("..") / "tools.py").run(call("f")) == "5"


def test_the_worker_starts_without_mlx() -> None:
    """And within the time that it takes to start Python, about."""
    code = "import mlx_llama4.tools.worker, sys; print(sorted(sys.modules))"
    command = [sys.executable, "-c", code]
    modules = subprocess.run(command, capture_output=True, text=True, check=True)
    heavy = {"mlx", "mlx.core", "numpy", "tokenizers", "jinja2", "typer", "rich", "PIL"}
    assert not heavy & set(ast.literal_eval(modules.stdout))


def test_the_documented_file_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tools.md").read_text()
    _, _, block = page.partition("```python file=house.py\n")
    (tmp_path / "house.py").write_text(block.partition("```")[0])
    (tmp_path / "readings.json").write_text('{"cellar": {"temperature": 9.5}}')
    tools = ToolFile.open(tmp_path / "house.py")
    assert tools.names == ["read_sensor", "set_heating"]
    assert tools.run(call("read_sensor", room="Cellar")) == "9.5"
    problem = tools.run(call("set_heating", rooms=["attic"], degrees=40))
    assert problem == "error: ValueError: 40.0 degrees is out of range"


def test_no_process_to_be_had(tools: ToolFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(worker_process.subprocess, "Popen", refuse)
    assert tools.run(evaluate("1")).startswith("error: the tool could not be started: ")
    with pytest.raises(InputError, match="cannot be read"):
        ToolFile.open(tools.path)
