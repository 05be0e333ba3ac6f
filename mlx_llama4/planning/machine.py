"""How much memory a machine has for a model: a Mac of a given size, or this machine."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from mlx_llama4.units import parse_bytes

GIB = 2**30
MIB = 2**20
# What a Mac's system and other programs keep, whatever the GPU may wire: a sixteenth, within these
# bounds. A plan that leaves them less makes the Mac swap, and beyond that freeze.
SYSTEM_SHARE, LEAST_SYSTEM, MOST_SYSTEM = 16, 2 * GIB, 8 * GIB

# What the process takes without a model, by measurement on Linux: 84 MB of memory, 600 MB of
# addresses; the rest is for buffers and threads that work adds.
OWN_BYTES, OWN_ADDRESSES = 128 * MIB, 900 * MIB


@dataclass(frozen=True)
class Machine:
    """A machine's memory, in bytes."""

    memory: int  # all of it
    usable: int  # the most that a model may take
    wired: int | None  # what macOS lets the GPU hold now; None: it computes on the CPU

    @property
    def has_gpu(self) -> bool:
        return self.wired is not None


def mac(memory: int, wired: int | None = None) -> Machine:
    """A Mac with `memory` bytes. wired: macOS's default if not given.

    By default the GPU may wire two thirds of the memory, and from 36 GB on three quarters. This is
    what Metal reports as recommendedMaxWorkingSetSize; recent versions of macOS allow large Macs
    more.
    """
    system = min(max(memory // SYSTEM_SHARE, LEAST_SYSTEM), MOST_SYSTEM)
    default = memory * 2 // 3 if memory < 36 * GIB else memory * 3 // 4
    usable = max(memory - system, 0)
    return Machine(memory, usable, min(default if wired is None else wired, memory))


def parse_memory(text: str) -> int:
    """ "128GB" → bytes. Memory is sold in powers of two, so GB means GiB. Raises InputError."""
    parse_bytes(text)  # raises an error that quotes the user's own text
    text = text.strip().upper()
    unit = text.rstrip("B")
    return parse_bytes(unit if unit.endswith("I") or unit[-1].isdigit() else f"{unit}iB")


def this_machine() -> Machine:
    """What Metal reports on a Mac; elsewhere the memory, or the limit of this process's cgroup."""
    if sys.platform == "darwin":
        import mlx.core as mx

        info = mx.device_info(mx.gpu)
        return mac(int(info["memory_size"]), int(info["max_recommended_working_set_size"]))
    import resource

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    addresses = None if soft == resource.RLIM_INFINITY else soft
    return bounded(memory, cgroup_limit(Path("/")), addresses)


def bounded(memory: int, cgroup: int | None, addresses: int | None) -> Machine:
    """A machine without a GPU, and what this process's cgroup and `ulimit -v` leave of it.

    Both count Python and MLX too, which no plan of a model does.
    """
    limits = [
        limit - own
        for limit, own in ((cgroup, OWN_BYTES), (addresses, OWN_ADDRESSES))
        if limit is not None
    ]
    usable = max(min([memory, *limits]), 0)
    return Machine(min([memory, *(limit for limit in (cgroup, addresses) if limit)]), usable, None)


def cgroup_limit(root: Path) -> int | None:
    """Bytes that this process's cgroup and those above it allow, v1 or v2; None without a limit.

    root: of the file system.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = base / path.lstrip("/")
        places = [place for place in (group, *group.parents) if place.is_relative_to(base)]
        limits += [_number(place / name) for place in places]
    return min((limit for limit in limits if limit is not None), default=None)


def _number(file: Path) -> int | None:
    """The limit in a file. v2 writes "max" for none, v1 a number larger than any memory."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
