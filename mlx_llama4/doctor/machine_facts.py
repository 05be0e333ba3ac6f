"""Describe the machine: processor, system, versions, memory; nothing that tells whose it is.

Each fact is looked up separately and may stay unknown.
"""

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import mlx.core as mx

from mlx_llama4 import __version__
from mlx_llama4.doctor.unknown import Unknown, attempt
from mlx_llama4.planning.machine import Machine, this_machine

PACKAGES = ("mlx", "mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13", "mlx-lm", "numpy")
COMMAND_SECONDS = 10


@dataclass(frozen=True)
class MachineFacts:
    """Facts about this machine."""

    processor: str | Unknown
    system: str | Unknown
    python: str
    packages: dict[str, str]  # name → version
    device: str | Unknown  # on which MLX computes
    memory: Machine | Unknown
    # iogpu.wired_limit_mb in MB, 0 for macOS's own choice; None if the system has no such limit.
    wired_limit: int | Unknown | None
    swap: str | Unknown | None
    low_power: bool | Unknown | None


def look() -> MachineFacts:
    is_mac = sys.platform == "darwin"
    return MachineFacts(
        processor=attempt(_processor_of_mac if is_mac else _processor),
        system=attempt(_macos if is_mac else _linux),
        python=f"{platform.python_version()}, {platform.machine()}",
        packages={"mlx-llama4": __version__} | _packages(),
        device=attempt(_device),
        memory=attempt(this_machine),
        wired_limit=attempt(lambda: int(sysctl("iogpu.wired_limit_mb"))) if is_mac else None,
        swap=attempt(_swap) if is_mac else None,
        low_power=attempt(_low_power) if is_mac else None,
    )


def sysctl(name: str) -> str:
    """Read a sysctl value of macOS. Raises OSError, or ValueError if it is unknown."""
    return _output("sysctl", "-n", name)


def _output(*command: str) -> str:
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )
    if found.returncode or not found.stdout.strip():
        raise ValueError(f"{command[0]} does not say")
    return found.stdout.strip()


def _count(name: str) -> int:
    return int(sysctl(name))


def _processor_of_mac() -> str:
    name, cores = sysctl("machdep.cpu.brand_string"), sysctl("hw.physicalcpu")
    kinds = []
    for level in range(3):
        kind = attempt(partial(sysctl, f"hw.perflevel{level}.name"))
        count = attempt(partial(_count, f"hw.perflevel{level}.physicalcpu"))
        if not isinstance(kind, Unknown) and not isinstance(count, Unknown):
            kinds.append(f"{count} {kind.lower()}")
    return f"{name}, {cores} cores" + (f" ({', '.join(kinds)})" if kinds else "")


def _processor() -> str:
    cores = f"{os.cpu_count()} cores"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {cores}"
    return f"{platform.machine()}, {cores}"


def _macos() -> str:
    build = attempt(lambda: sysctl("kern.osversion"))
    version = platform.mac_ver()[0]
    return f"macOS {version}" + ("" if isinstance(build, Unknown) else f" ({build})")


def _linux() -> str:
    """The kernel's version number only, since a suffix may be somebody's own name for it."""
    number = re.match(r"[\d.]*\d", platform.release())
    kernel = f"{platform.system()} {number[0] if number else ''}".strip()
    name = attempt(lambda: platform.freedesktop_os_release()["PRETTY_NAME"])
    return kernel if isinstance(name, Unknown) else f"{kernel}, {name}"


def _packages() -> dict[str, str]:
    """Versions of the installed packages, without a local build's name after the +."""
    versions = {}
    for name in PACKAGES:
        try:
            public, _, local = metadata.version(name).partition("+")
        except metadata.PackageNotFoundError:
            continue
        versions[name] = f"{public} (own build)" if local else public
    return versions


def _device() -> str:
    if mx.default_device() == mx.cpu:
        return "CPU"
    info = mx.device_info(mx.gpu)
    parts = [f"GPU: {info.get('device_name', 'unnamed')}"]
    if "architecture" in info:
        parts.append(str(info["architecture"]))
    if sys.platform == "darwin":
        found = attempt(_gpu_cores)
        parts += [] if isinstance(found, Unknown) else [f"{found} cores"]
    return ", ".join(parts)


def _gpu_cores() -> int:
    found = re.search(
        r'"gpu-core-count" = (\d+)', _output("ioreg", "-r", "-d", "1", "-c", "AGXAccelerator")
    )
    if found is None:
        raise ValueError("ioreg does not say")
    return int(found[1])


def _swap() -> str:
    found = re.search(r"used = ([\d.]+[KMGT]?)", sysctl("vm.swapusage"))
    if found is None:
        raise ValueError("sysctl does not say")
    return found[1]


def _low_power() -> bool:
    found = re.search(r"^\s*lowpowermode\s+(\d)", _output("pmset", "-g"), re.MULTILINE)
    if found is None:
        raise ValueError("pmset does not say")
    return found[1] == "1"
