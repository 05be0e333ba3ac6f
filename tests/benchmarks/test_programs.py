"""What processes of engines run: files that need nothing but the engine itself."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness.engines import OURS, PROGRAMS, Engine, program
from benchmarks.harness.process import run_measured
from mlx_llama4 import __version__

FILES = sorted(file.stem for file in PROGRAMS.glob("*.py") if file.stem != "__init__")
ENGINES = {"mlx_llama4", "mlx_lm", "mlx_vlm"}


def packages(nodes: Iterator[ast.AST]) -> set[str]:
    """Of all imports among these nodes, the first part of the name."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or ".")
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names


@pytest.mark.parametrize("name", FILES)
def test_programs_run_where_only_their_engine_is_installed(name: str) -> None:
    """Outside functions they import no engine, or one alone; nowhere what lies beside them."""
    tree = ast.parse(program(name))
    outside = packages(iter(tree.body))
    assert outside <= {"mlx", "numpy"} or (name, outside) == ("repack", {"mlx_vlm"})
    assert packages(ast.walk(tree)) <= {"mlx", "numpy"} | ENGINES
    for function in tree.body:
        if isinstance(function, ast.FunctionDef) and function.name != "loader":
            assert len(packages(ast.walk(function)) & ENGINES) <= 1


def test_a_program_is_told_its_engine_and_runs_after_the_prelude(tmp_path: Path) -> None:
    engine = Engine(OURS, prelude="import sys; sys.argv.append('--version')")
    usage = run_measured(engine.run("startup"), tmp_path)
    assert usage.output.strip() == __version__
