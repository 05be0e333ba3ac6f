"""How much memory a machine has for a model."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlx_llama4.errors import InputError
from mlx_llama4.planning.machine import (
    GIB,
    OWN_ADDRESSES,
    OWN_BYTES,
    Machine,
    bounded,
    cgroup_limit,
    mac,
    parse_memory,
    this_machine,
)


@pytest.mark.parametrize(
    ("gib", "wired"),
    [(8, 8 * GIB * 2 // 3), (16, 11_453_246_122), (36, 28_991_029_248), (128, 96 * GIB)],
)
def test_what_the_gpu_may_wire_by_default(gib: int, wired: int) -> None:
    """16 and 36 as Metal has reported them: 10.67 GiB and 28991.03 MB."""
    assert mac(gib * GIB).wired == wired


def test_what_metal_says_wins() -> None:
    machine = mac(128 * GIB, 107 * GIB)
    assert (machine.wired, machine.usable, machine.has_gpu) == (107 * GIB, 120 * GIB, True)


def test_something_is_left_for_the_system() -> None:
    left = [machine.memory - machine.usable for machine in (mac(n * GIB) for n in (8, 64, 512))]
    assert left == [2 * GIB, 4 * GIB, 8 * GIB]
    assert mac(GIB).usable == 0


def test_memory_is_sold_in_powers_of_two() -> None:
    for text in ("128GB", "128 gb", "128G", "128GiB", "131072M", "137438953472"):
        assert parse_memory(text) == 128 * GIB, text
    for text in ("", "much", "128 boxes", "-1GB", "B", 400 * "9"):
        with pytest.raises(InputError, match="is not a size"):
            parse_memory(text)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("inner", ["max\n", "3000\n"])
def test_cgroups_of_version_2_bound_those_below(tmp_path: Path, inner: str) -> None:
    files = {"a/b/memory.max": inner, "a/memory.max": "2000\n"}
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    root = write(tmp_path, files | {"proc/self/cgroup": "0::/a/b\n"})
    assert cgroup_limit(root) == 2000


def test_a_container_that_sees_its_own_cgroup_as_the_root(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory.max": "4096\n", "proc/self/cgroup": "0::/\n"}
    assert cgroup_limit(write(tmp_path, files)) == 4096


def test_cgroups_of_version_1(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "1000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "proc/self/cgroup": "5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n",
    }
    assert cgroup_limit(write(tmp_path, files)) == 1000


def test_no_cgroup_no_limit(tmp_path: Path) -> None:
    assert cgroup_limit(tmp_path) is None
    assert cgroup_limit(write(tmp_path, {"proc/self/cgroup": "0::/\n"})) is None


def test_limits_count_the_process_itself() -> None:
    """A model that just fits the limit would be killed, or crash."""
    memory = 8 * GIB
    assert bounded(memory, None, None) == Machine(memory, memory, None)
    assert bounded(memory, GIB, None) == Machine(GIB, GIB - OWN_BYTES, None)
    assert bounded(memory, None, 2 * GIB) == Machine(2 * GIB, 2 * GIB - OWN_ADDRESSES, None)
    assert bounded(memory, GIB, 2 * GIB) == Machine(GIB, GIB - OWN_BYTES, None)
    assert bounded(memory, 2**20, 2**20).usable == 0
    assert bounded(memory, 2 * memory, None).usable == memory


@pytest.mark.parametrize("limit", [700, 900])
def test_too_few_addresses_are_said(limit: int, demo_folder: Path) -> None:
    """As `ulimit -v` sets them: a refusal, where MLX would crash."""
    program = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({limit * 2**20},) * 2)\n"
        "from mlx_llama4.__main__ import run\n"
        "run()\n"
    )
    words = [sys.executable, "-c", program, "ask", "hi", "--model", str(demo_folder)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 2 and line.startswith("error: ") and "memory" in line


def test_this_machine() -> None:
    machine = this_machine()
    assert 2**28 < machine.usable <= machine.memory < 2**50
