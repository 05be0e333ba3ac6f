"""Run all of doctor's checks in turn. A failure is reported, and the rest continues."""

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mlx_llama4.doctor import disk, goldens, models, speed
from mlx_llama4.doctor.asking import DemoAnswers, ModelSpeed, ask_demo
from mlx_llama4.doctor.machine_facts import MachineFacts, look
from mlx_llama4.doctor.unknown import Unknown, attempt

# Shows what is being done while it lasts.
Status = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    checks: Sequence[goldens.Check] = goldens.CHECKS
    array_bytes: int = speed.ARRAY_BYTES
    disk_bytes: int = disk.FILE_BYTES
    work: speed.Work | None = None  # None: as suits the device


@dataclass(frozen=True)
class Report:
    """What doctor found."""

    machine: MachineFacts
    bandwidth: float | Unknown  # of memory, bytes a second
    disk: disk.DiskSpeed | Unknown
    decode: speed.DecodeSpeed | Unknown
    demo: DemoAnswers | Unknown
    model: ModelSpeed | Unknown | None  # None: no model was given
    checks: list[goldens.Result]

    @property
    def failures(self) -> list[str]:
        failed = [f"{one.name} on the {one.device}" for one in self.checks if not one.passed]
        if not isinstance(self.demo, Unknown) and self.demo.right < self.demo.questions:
            failed.append("answers of the built-in model")
        return failed


def examine(
    status: Status,
    model_files: Sequence[Path] = (),
    measure_model: Callable[[], ModelSpeed] | None = None,
    effort: Effort = Effort(),
) -> Report:
    """Examine this machine. model_files: of the measured model; the disk is timed with them."""
    with status("Looking at the machine"):
        machine = look()
    checks = run_checks(status, effort.checks)
    with status("Measuring memory"):
        bandwidth = attempt(lambda: speed.measure_bandwidth(effort.array_bytes))
    with status("Measuring the disk"):
        disk_speed = attempt(lambda: _measure_disk(model_files, effort.disk_bytes))
    with status("Measuring layers of Scout's shapes"):
        decode = attempt(lambda: speed.measure_decode(effort.work))
    with status("Asking the built-in model"):
        demo = attempt(ask_demo)
    mx.clear_cache()  # free what the layers took, for the model
    model = None if measure_model is None else attempt(measure_model)
    return Report(machine, bandwidth, disk_speed, decode, demo, model, checks)


def run_checks(status: Status, checks: Sequence[goldens.Check]) -> list[goldens.Result]:
    """Run checks on the default device and on the CPU, which has no kernels for some of them."""
    results = []
    for device in goldens.devices():
        for check in checks:
            if device == "CPU" and check.dtype != "float32":
                continue
            with status(f"Checking on the {device}: {check.name}"):
                results.append(goldens.run(check, device))
    models.forget()
    return results


def _measure_disk(model_files: Sequence[Path], nbytes: int) -> disk.DiskSpeed:
    if model_files:
        return disk.measure_files(model_files, nbytes)
    return disk.measure_folder(_download_folder(), nbytes)


def _download_folder() -> Path:
    """The folder of the hub's downloads, or the nearest one that exists."""
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home
        home = Path(tempfile.gettempdir())
    places = [Path(os.environ.get("HF_HOME") or home / ".cache" / "huggingface"), home]
    usable = (place for place in places if place.is_dir() and os.access(place, os.W_OK))
    return next(usable, Path(tempfile.gettempdir()))
