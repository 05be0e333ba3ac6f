"""The memory of another process, as the system counts it: Linux's /proc, macOS's libproc."""

import ctypes
import functools
import sys
from dataclasses import dataclass
from pathlib import Path

from mlx_llama4.errors import RunError

IS_MAC = sys.platform == "darwin"
HOW_MEASURED = (
    "physical footprint (what Activity Monitor shows), by libproc"
    if IS_MAC
    else "RssAnon + RssShmem of /proc/PID/status"
)


@dataclass(frozen=True)
class Memory:
    """A process's memory."""

    peak_resident_bytes: int  # the most so far (on macOS: now), pages of files included
    anonymous_bytes: int  # now, without pages that are in a file anyway


def read_memory(pid: int) -> Memory | None:
    """The memory of a process now; None once it has given its memory back."""
    return _read_mac(pid) if IS_MAC else _read_linux(pid)


def _read_linux(pid: int) -> Memory | None:
    # Not smaps_rollup: it walks all pages and holds up the process that is being measured.
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    kilobytes = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in ("VmHWM", "RssAnon", "RssShmem"):
            kilobytes[name] = int(value.split()[0])
    if len(kilobytes) < 3:
        return None
    return Memory(
        peak_resident_bytes=kilobytes["VmHWM"] * 1024,
        anonymous_bytes=(kilobytes["RssAnon"] + kilobytes["RssShmem"]) * 1024,
    )


class _MacUsage(ctypes.Structure):
    """struct rusage_info_v0 of macOS's <sys/resource.h>."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        ("user_time", ctypes.c_uint64),
        ("system_time", ctypes.c_uint64),
        ("idle_wakeups", ctypes.c_uint64),
        ("interrupt_wakeups", ctypes.c_uint64),
        ("pageins", ctypes.c_uint64),
        ("wired_size", ctypes.c_uint64),
        ("resident_size", ctypes.c_uint64),
        ("phys_footprint", ctypes.c_uint64),
        ("start_time", ctypes.c_uint64),
        ("exit_time", ctypes.c_uint64),
    )


def _read_mac(pid: int) -> Memory | None:
    usage = _MacUsage()
    if _libproc().proc_pid_rusage(pid, 0, ctypes.byref(usage)) != 0:
        return None
    return Memory(usage.resident_size, usage.phys_footprint)


@functools.cache
def _libproc() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("/usr/lib/libproc.dylib")
    except OSError as failure:
        raise RunError(f"cannot measure memory: {failure}") from None
