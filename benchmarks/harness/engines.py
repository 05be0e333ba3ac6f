"""Who is compared: ours and its peers, which Python runs each, and what each weighs idle."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.process import ENVIRONMENT, last_words
from benchmarks.harness.process_memory import Memory, read_memory
from mlx_llama4.errors import InputError, RunError

OURS = "ours"
DISTRIBUTIONS = {OURS: "mlx-llama4", "mlx-lm": "mlx-lm", "mlx-vlm": "mlx-vlm"}
ENGINES = tuple(DISTRIBUTIONS)
PACKAGES = (*DISTRIBUTIONS.values(), "mlx", "transformers", "torch")
PROGRAMS = Path(__file__).parents[1] / "programs"


@dataclass(frozen=True)
class Engine:
    """A program that is measured."""

    name: str
    python: str = sys.executable
    prelude: str = ""  # Python that its processes run before anything else

    def command(self, code: str, *arguments: object) -> list[str]:
        """A command line that runs Python code, with sys.argv[1:] as given."""
        code = f"{self.prelude}\n{code}" if self.prelude else code
        return [self.python, "-c", code, *map(str, arguments)]

    def run(self, name: str, *arguments: object) -> list[str]:
        """A command line that runs a file of programs/, told the engine's name first."""
        return self.command(program(name), self.name, *arguments)


@dataclass(frozen=True)
class Idle:
    """A process that has imported what its engine needs and waits."""

    seconds: float  # from its start until then
    memory: Memory
    versions: Mapping[str, str]  # of Python and of those of PACKAGES that it finds


def program(name: str) -> str:
    """The text of a file of programs/."""
    return (PROGRAMS / f"{name}.py").read_text()


def choose_engines(
    only: str | None, pythons: Sequence[str], preludes: Sequence[str]
) -> list[Engine]:
    """The engines that the options name, ours first. Raises InputError for unknown names.

    only: names with commas between; pythons, preludes: NAME=VALUE.
    """
    names = only.split(",") if only else ENGINES
    python = _by_engine("--python", pythons)
    prelude = _by_engine("--prelude", preludes)
    for name in names:
        _check_name("--only", name)
    return [
        Engine(name, _absolute(python.get(name, sys.executable)), prelude.get(name, ""))
        for name in ENGINES
        if name in names
    ]


def measure_idle(engine: Engine, imports: str, folder: Path) -> Idle:
    """Start the engine's Python, import modules, look. Raises RunError if that fails.

    imports: names of modules with commas between.
    """
    command = engine.command(f"import {imports}\n{program('idle')}", *PACKAGES)
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        except OSError as failure:
            raise RunError(f"cannot start {engine.python}: {failure.strerror}") from None
        assert process.stdout is not None
        with process:
            imported = any(line.strip() == "imported" for line in process.stdout)
            seconds = time.perf_counter() - start
            memory = read_memory(process.pid)
            output, _ = process.communicate("\n")
        if process.returncode != 0 or not imported or memory is None:
            raise RunError(last_words(process.returncode, errors))
    return Idle(seconds, memory, json.loads(output))


def _by_engine(option: str, values: Sequence[str]) -> dict[str, str]:
    found = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not rest:
            raise InputError(f"{option} {value}: write NAME=VALUE")
        _check_name(option, name)
        found[name] = rest
    return found


def _absolute(python: str) -> str:
    """Engines run in folders of their own. Links are kept: a virtual environment is one."""
    return str(Path(python).expanduser().absolute()) if "/" in python else python


def _check_name(option: str, name: str) -> None:
    if name not in ENGINES:
        raise InputError(f"{option} {name}: no such engine; there are {', '.join(ENGINES)}")
