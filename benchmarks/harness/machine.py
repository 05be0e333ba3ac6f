"""The machine on which figures were measured."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mlx_llama4.units import human_bytes


@dataclass(frozen=True)
class Machine:
    processor: str
    cores: int
    memory_bytes: int
    system: str

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, {human_bytes(self.memory_bytes)}, {self.system}"
        )


def this_machine() -> Machine:
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=platform.platform(terse=True) + " " + platform.machine(),
    )


def _processor() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        return found.stdout.strip() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
