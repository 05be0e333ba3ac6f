"""Imports point down: which room of the package may import which.

A room is a package of `mlx_llama4` (convert/ and cli/'s packages among them) or a module that
lies beside those. Every import counts: those in functions, and those for type checkers alone.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "mlx_llama4"
SPLIT = ("cli",)  # rooms whose packages are rooms too

# Room → what it imports. No more than is used, so that a new arrow is a decision.
ARROWS = {
    "demo": "",
    "errors": "",
    "least_recently_used": "",
    "units": "errors",
    "cli.console": "errors units",
    "files": "errors units",
    "cli.markdown": "cli.console",
    "quantization": "errors files",
    "config": "errors files quantization",
    "prompt": "errors least_recently_used files config",
    "tensors": "quantization config",
    "checkpoint": "errors files quantization config tensors",
    "memory": "quantization config tensors",
    "tools": "errors prompt",
    "cache": "errors least_recently_used files quantization prompt checkpoint memory",
    "hub": "errors files config checkpoint",
    "convert": "errors units files quantization config tensors checkpoint hub",
    "model": "errors quantization config memory cache",
    "evaluation": "errors config prompt tensors checkpoint model",
    "generation": "errors least_recently_used files config prompt memory cache model",
    "training": "errors model",
    "offload": "errors units files quantization config checkpoint model",
    "opening": "errors files quantization config prompt checkpoint hub model offload planning",
    "planning": "errors units files quantization config tensors checkpoint memory hub offload",
    "chat": (
        "errors quantization config prompt checkpoint memory cache model generation planning "
        "opening"
    ),
    "cli.talk": "errors units cli.console cli.markdown prompt cache generation chat",
    "doctor": (
        "demo errors units files quantization config prompt tensors checkpoint convert "
        "model generation opening planning chat"
    ),
    "mlx_llama4": "errors quantization generation opening chat",
    "cli": (
        "demo errors units cli.console cli.markdown quantization prompt tensors "
        "checkpoint memory tools cache hub convert evaluation generation offload opening "
        "planning chat cli.talk doctor"
    ),
    "__main__": "cli",
}
MAY_CONVERT = {"cli", "doctor"}  # besides convert itself
MOST_LOOSE_MODULES = 9
MOST_LINES = 400

Graph = Mapping[str, set[str]]


def _files() -> dict[str, Path]:
    """Module → its file; convert/ under the name that it is imported by."""
    files = {}
    for folder, name in ((ROOT / PACKAGE, PACKAGE), (ROOT / "convert", f"{PACKAGE}.convert")):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            files[".".join((name, *parts))] = file
    return files


def _imported(text: str, known: Mapping[str, Path]) -> Iterator[str]:
    """The package's modules that a module of this text imports, wherever in it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: name the module in full, without dots"
            for alias in node.names:
                if f"{node.module}.{alias.name}" in known:
                    yield f"{node.module}.{alias.name}"
                elif node.module in known and (node.module, alias.name) != (PACKAGE, "__version__"):
                    yield str(node.module)


def _room(module: str) -> str:
    first, *rest = module.split(".")[1:] or [PACKAGE]
    is_split = first in SPLIT and rest and (ROOT / PACKAGE / first / rest[0]).is_dir()
    return f"{first}.{rest[0]}" if is_split else first


def _arrows(graph: Graph, of: Callable[[str], str]) -> dict[str, set[str]]:
    """The graph with its nodes renamed, less what then points at itself."""
    arrows: dict[str, set[str]] = {}
    for start, ends in graph.items():
        arrows.setdefault(of(start), set()).update(of(end) for end in ends)
    return {start: ends - {start} for start, ends in arrows.items()}


def _circle(graph: Graph) -> list[str]:
    """What is left once all is taken away that points at nothing left, or that nothing left points
    at: circles, and what joins them.
    """
    left = set(graph)
    while True:
        pointed_at = {end for node in left for end in graph[node]}
        inside = {node for node in left & pointed_at if graph[node] & left}
        if inside == left:
            return sorted(left)
        left = inside


FILES = _files()
MODULES = {
    module: set(_imported(file.read_text(), FILES)) - {module} for module, file in FILES.items()
}
ROOMS = _arrows(MODULES, _room)


def test_there_is_no_circle() -> None:
    assert not _circle(MODULES)
    assert not _circle(ROOMS)


def test_a_circle_is_found() -> None:
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"e"}, "e": set()}) == ["b", "c"]


def test_rooms_import_what_the_table_allows() -> None:
    """An arrow that is not in the table goes up, or ought to be thought about; one that is not used
    any more comes out of it.
    """
    allowed = {room: set(ends.split()) for room, ends in ARROWS.items()}
    assert {room: ends - allowed.get(room, set()) for room, ends in ROOMS.items()} == {
        room: set() for room in ROOMS
    }
    assert {room: ends - ROOMS.get(room, set()) for room, ends in allowed.items()} == {
        room: set() for room in allowed
    }


def test_imports_in_functions_and_for_types_count() -> None:
    text = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from mlx_llama4.model.llama4 import Llama4
def late():
    import mlx_llama4.memory
    from mlx_llama4.cli import ask
    from mlx_llama4 import __version__
"""
    assert set(_imported(text, FILES)) == {
        "mlx_llama4.model.llama4",
        "mlx_llama4.memory",
        "mlx_llama4.cli.ask",
    }


def test_only_what_makes_folders_knows_convert() -> None:
    assert {room for room, ends in ROOMS.items() if "convert" in ends} <= MAY_CONVERT


def test_the_top_is_easy_to_survey() -> None:
    """Modules beside packages."""
    loose = {file.stem for file in (ROOT / PACKAGE).glob("*.py")} - {"__init__", "__main__"}
    assert len(loose) <= MOST_LOOSE_MODULES, sorted(loose)


def test_no_file_is_long() -> None:
    folders = (PACKAGE, "convert", "benchmarks", "examples", "tests")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert {file: lines for file, lines in lengths.items() if lines > MOST_LINES} == {}


def test_the_way_to_convert_is_a_relative_link() -> None:
    """An absolute one would lead nowhere in another clone, a copy would be edited in vain."""
    link = ROOT / PACKAGE / "convert"
    assert link.is_symlink() and str(link.readlink()) == "../convert"
