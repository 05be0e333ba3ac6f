"""Runs a conversion slice by slice, in bounded memory; continues where an earlier run stopped.

One thread reads ahead, this one decodes and packs, another writes. Disk and processor are busy at
once, with one slice in each place.
"""

import json
import re
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import mlx.core as mx
import numpy as np

from mlx_llama4.checkpoint.open import Source, open_source
from mlx_llama4.checkpoint.zeros import WatchedCheckpoint
from mlx_llama4.convert.config_json import mlx_config
from mlx_llama4.convert.journal import Entry
from mlx_llama4.convert.pack import PackedSlice, pack
from mlx_llama4.convert.plan import Job, Plan, make_plan
from mlx_llama4.convert.quality import Quality, conversion_json, measured_quality
from mlx_llama4.convert.recipes import Recipe
from mlx_llama4.convert.side_files import copy_side_files
from mlx_llama4.convert.source_files import LocalShards, Shards
from mlx_llama4.convert.write import (
    MAX_SHARD_BYTES,
    FolderWriter,
    check_destination,
    resolve_destination,
)
from mlx_llama4.errors import RunError
from mlx_llama4.hub.repository import find_folder

INODE = re.compile(r":\d+\.\d+(?= |$)")  # of a stamp


@dataclass(frozen=True)
class Settings:
    """How to run a conversion, whatever the recipe."""

    shard_bytes: int = MAX_SHARD_BYTES  # of the largest shard
    restart: bool = False  # throw away what an earlier run left
    verify: bool = False  # read the result back from the disk before it gets its final name


@dataclass(frozen=True)
class Progress:
    """How far a conversion is."""

    doing: str  # "Converting"
    done: int  # bytes of the source, by this run and earlier ones
    total: int
    resumed: int = 0  # bytes of the source, by earlier runs only


@dataclass(frozen=True)
class Report:
    """What a conversion did."""

    source_bytes: int
    output_bytes: int
    resumed_bytes: int
    redone_bytes: int  # done before, but from files that were replaced or moved since
    seconds: float
    peak_bytes: int  # the most memory that MLX and the slices read took together
    has_vision: bool
    quality: Quality
    files: int  # of the source that this run read
    verified_files: int  # of them, those whose content was found to be the hub's
    # Tensors of the other files → how many of their rows this run found to be zero throughout.
    zero_rows: Mapping[str, int]


def convert(
    folder: str | Path,
    out: str | Path,
    recipe: Recipe,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    settings: Settings = Settings(),
) -> Report:
    """Converts a checkpoint to the MLX folder `out`.

    folder: a path, or OWNER/NAME on the Hugging Face hub, which is downloaded first.
    Raises InputError before anything is written, RunError after. Then `out` does not exist, what
    was done is in `<out>.partial` beside it, and the same call continues from there.
    """
    source = open_source(find_folder(folder, purpose="convert"))
    plan = make_plan(source, recipe)
    return run(source, plan, Path(out), LocalShards(), on_progress, settings)


def run(
    source: Source,
    plan: Plan,
    out: Path,
    shards: Shards,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    settings: Settings = Settings(),
    files: Mapping[str, str] = MappingProxyType({}),
) -> Report:
    """As `convert`, for a plan already made. on_progress is called for each slice. files: name →
    text of files to write beside those of the source.
    """
    start = time.perf_counter()
    out = resolve_destination(out)
    check_destination(out, plan.output_bytes)
    mx.reset_peak_memory()
    held_before = mx.get_active_memory()
    options = {"search": plan.recipe.search, "block": max(job.nbytes for job in plan.jobs)}
    with FolderWriter(
        out,
        plan.outputs,
        shard_bytes=settings.shard_bytes,
        restart=settings.restart,
        options=options,
    ) as writer:
        # The small files first, so that one that cannot be copied shows early.
        copy_side_files(source, writer, files)
        text = json.dumps(mlx_config(source.raw, source.config, plan), indent=4)
        writer.write_text("config.json", text + "\n")
        conversion = _Conversion(source, plan, writer, shards, on_progress)
        conversion.check_done()
        conversion.run()
        if settings.verify:
            conversion.verify()
        quality = measured_quality(plan, conversion.entries.values())
        report = json.dumps(conversion_json(source, plan, quality), indent=2)
        writer.write_text("conversion.json", report + "\n")
        writer.finish()
    return Report(
        source_bytes=plan.source_bytes,
        output_bytes=plan.output_bytes,
        resumed_bytes=conversion.resumed,
        redone_bytes=conversion.redone,
        seconds=time.perf_counter() - start,
        peak_bytes=mx.get_peak_memory() - held_before + 2 * max(job.nbytes for job in plan.jobs),
        has_vision=source.config.vision is not None,
        quality=quality,
        files=len(conversion.files),
        verified_files=len(shards.verified),
        zero_rows=conversion.unverified_zeros(),
    )


class _Conversion:
    """The jobs of one run."""

    def __init__(
        self,
        source: Source,
        plan: Plan,
        writer: FolderWriter,
        shards: Shards,
        on_progress: Callable[[Progress], None],
    ):
        self.checkpoint = WatchedCheckpoint(source.checkpoint.folder, source.checkpoint.tensors)
        self.files: set[Path] = set()  # that this run read
        self.plan = plan
        self.writer = writer
        self.shards = shards
        self.on_progress = on_progress
        self.entries: dict[int, Entry] = {}  # job → what is done of it
        self.done = self.resumed = 0  # bytes of the source, by all runs and by earlier ones
        self.redone = 0  # bytes of the source that earlier runs read from files since replaced

    def check_done(self) -> None:
        """Keeps the journal's entries whose source is the same and whose checksums are right."""
        for index, entry in sorted(self.writer.done.items()):
            if index >= len(self.plan.jobs):
                continue
            job = self.plan.jobs[index]
            self.on_progress(Progress("Checking", self.resumed, self.plan.source_bytes))
            stamp = self._stamp(job)
            # Version 0.1.0 wrote stamps without the inode and its time.
            if entry.stamp not in (stamp, INODE.sub("", stamp)):
                self.redone += job.nbytes
            elif self._is_intact(job, entry):
                self.entries[index] = entry
                self.resumed += job.nbytes
        self.done = self.resumed

    def run(self) -> None:
        """Does all jobs that are left. Leaves no thread behind, however it ends."""
        left = [index for index in range(len(self.plan.jobs)) if index not in self.entries]
        self.shards.expect([self.plan.jobs[index].files for index in left])
        with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as saver:
            try:
                self._work(left, reader, saver)
            except BaseException:
                self.shards.stop()  # or the pool would wait for a shard still being fetched
                raise
        self._release(self.writer.commit())

    def _work(self, left: list[int], reader: Executor, saver: Executor) -> None:
        if not left:
            return
        reading = reader.submit(self._read, left[0])
        saving: Future[None] | None = None
        for index, following in zip(left, [*left[1:], None], strict=True):
            data = reading.result()
            if following is not None:
                reading = reader.submit(self._read, following)
            packed = pack(self.plan, self.plan.jobs[index], data)
            del data
            if saving is not None:
                saving.result()
            saving = saver.submit(self._save, index, packed)
            del packed
        if saving is not None:
            saving.result()

    def verify(self) -> None:
        """Raises RunError if what is on the disk is not what was written."""
        self.writer.forget_cached()
        done = 0
        for index, entry in sorted(self.entries.items()):
            job = self.plan.jobs[index]
            if not self._is_intact(job, entry):
                raise RunError(
                    f"{self.writer.folder}: {job.source.targets[0]} does not read back as it was "
                    "written; the disk may be failing; run the same command again"
                )
            done += job.nbytes
            self.on_progress(Progress("Verifying", done, self.plan.source_bytes))

    def _read(self, index: int) -> list[np.ndarray]:
        job = self.plan.jobs[index]
        for file in job.files:
            self.shards.ensure(file)
            self.files.add(file)
        dtype = self.plan.recipe.dtype
        return job.source.read(self.checkpoint, job.start, job.stop, dtype)

    def unverified_zeros(self) -> dict[str, int]:
        watched = self.checkpoint
        return {
            name: count
            for name, count in watched.zero_rows.items()
            if watched.files_of[name] not in self.shards.verified
        }

    def _save(self, index: int, packed: PackedSlice) -> None:
        job = self.plan.jobs[index]
        checksums = {}
        for name, data in packed.parts.items():
            self.writer.write(name, job.start, data)
            checksums[name] = zlib.crc32(data)
        entry = Entry(index, self._stamp(job), checksums, packed.errors)
        self.entries[index] = entry
        self._release(self.writer.record(entry))
        self.done += job.nbytes
        self.on_progress(Progress("Converting", self.done, self.plan.source_bytes, self.resumed))

    def _release(self, durable: list[Entry]) -> None:
        for entry in durable:
            self.shards.done(self.plan.jobs[entry.job].files)

    def _is_intact(self, job: Job, entry: Entry) -> bool:
        rows = job.stop - job.start
        return entry.checksums.keys() == set(self._outputs(job)) and all(
            self.writer.checksum(name, job.start, rows) == checksum
            for name, checksum in entry.checksums.items()
        )

    def _outputs(self, job: Job) -> list[str]:
        return [part for name in job.source.targets for part in self.plan.parts[name]]

    def _stamp(self, job: Job) -> str:
        return " ".join(self.shards.stamp(file) for file in job.files)
