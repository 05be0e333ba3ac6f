"""Conversions that were stopped, killed or tampered with, and taken up again."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import mlx_llama4.convert.write as write_module
from mlx_llama4.checkpoint.safetensors import read_header
from mlx_llama4.convert.journal import JOURNAL_NAME
from mlx_llama4.convert.run import Progress, Settings, convert
from mlx_llama4.convert.write import FolderWriter, free_bytes
from mlx_llama4.errors import OutputError, RunError
from mlx_llama4.files.durable import _invalidate
from tests.convert.folders import FOUR_BITS, PLAIN, files


@pytest.fixture
def undisturbed(checkpoint: Path, tmp_path: Path) -> dict[str, bytes]:
    convert(checkpoint, tmp_path / "undisturbed", FOUR_BITS)
    return files(tmp_path / "undisturbed")


@pytest.fixture
def partial(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stopped by Ctrl-C about half-way, each slice journalled on its own."""
    monkeypatch.setattr(write_module, "COMMIT_BYTES", 1)

    def stop(now: Progress) -> None:
        if now.done > now.total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, tmp_path / "out", FOUR_BITS, stop)
    assert not (tmp_path / "out").exists()
    return tmp_path / "out.partial"


def journalled(partial: Path) -> list[dict]:
    lines = (partial / JOURNAL_NAME).read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def resume(checkpoint: Path, partial: Path) -> tuple[int, dict[str, bytes]]:
    out = partial.with_suffix("")
    report = convert(checkpoint, out, FOUR_BITS)
    assert not partial.exists()
    return report.resumed_bytes, files(out)


def test_goes_on_where_it_stopped(
    checkpoint: Path, partial: Path, undisturbed: dict[str, bytes]
) -> None:
    seen: list[Progress] = []
    report = convert(checkpoint, partial.with_suffix(""), FOUR_BITS, seen.append)
    assert report.source_bytes / 2 < report.resumed_bytes < report.source_bytes
    converting = [now for now in seen if now.doing == "Converting"]
    assert converting[0].done > converting[0].resumed == report.resumed_bytes
    assert files(partial.with_suffix("")) == undisturbed


def test_slow_work_is_journalled_by_time(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter(range(10**6))
    clock = SimpleNamespace(monotonic=lambda: float(next(seconds)))
    monkeypatch.setattr(write_module, "time", clock)
    monkeypatch.setattr(write_module, "COMMIT_SECONDS", 3.0)
    seen: list[int] = []

    def look(now: Progress) -> None:
        seen.append(len(journalled(tmp_path / "out.partial")))

    convert(checkpoint, tmp_path / "out", FOUR_BITS, look)
    # A look at the clock for each slice, and one for each commit.
    assert seen[:7] == [0, 0, 3, 3, 3, 6, 6]


def test_only_the_end_was_missing(
    checkpoint: Path,
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All slices were on the disk, which then had no room for the index."""

    def full(self: FolderWriter) -> None:
        raise RunError("disk full")

    with monkeypatch.context() as patched, pytest.raises(RunError, match="disk full"):
        patched.setattr(FolderWriter, "_write_index", full)
        convert(checkpoint, tmp_path / "out", FOUR_BITS)
    report = convert(checkpoint, tmp_path / "out", FOUR_BITS)
    assert report.resumed_bytes == report.source_bytes
    assert files(tmp_path / "out") == undisturbed


def test_what_is_written_counts_as_free_for_going_on(
    partial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(partial)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    written = sum(path.stat().st_blocks * 512 for path in partial.iterdir())
    assert written > 2**18
    assert free_bytes(partial.with_suffix("")) == 1000 + written


def test_a_torn_journal_line_is_as_none(
    checkpoint: Path, partial: Path, undisturbed: dict[str, bytes]
) -> None:
    whole = len(journalled(partial))
    journal = partial / JOURNAL_NAME
    journal.write_bytes(journal.read_bytes()[:-30])
    assert len((journal.read_text()).splitlines()) == whole + 1
    resumed, found = resume(checkpoint, partial)
    assert resumed > 0 and found == undisturbed


def test_damage_to_what_was_done_is_found(
    checkpoint: Path, partial: Path, undisturbed: dict[str, bytes]
) -> None:
    """A range zeroed behind its back, a byte changed, a shard cut short, a shard gone."""
    shard = partial / "model.safetensors"
    tensors = {tensor.name: tensor for tensor in read_header(shard)}
    done = journalled(partial)
    for entry in (done[3], done[-1]):
        tensor = tensors[next(iter(entry["checksums"]))]
        with shard.open("r+b") as stream:
            stream.seek(tensor.offset)
            stream.write(bytes(tensor.nbytes))
    resumed, found = resume(checkpoint, partial)
    assert resumed > 0 and found == undisturbed


@pytest.mark.parametrize("harm", ["truncated", "gone", "header"])
def test_harm_to_a_shard_as_a_whole(
    checkpoint: Path, partial: Path, undisturbed: dict[str, bytes], harm: str
) -> None:
    shard = partial / "model.safetensors"
    if harm == "gone":
        shard.unlink()
    elif harm == "truncated":
        os.truncate(shard, 20_000)
    else:
        with shard.open("r+b") as stream:
            stream.write(bytes(100))
    assert resume(checkpoint, partial)[1] == undisturbed


def test_a_source_that_has_changed_is_read_again(
    checkpoint: Path, partial: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    """Only the slices of the shard that is new; mtime and size tell."""
    first = sorted(checkpoint.glob("*.safetensors"))[0]
    before = first.stat()
    os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    try:
        resumed, found = resume(checkpoint, partial)
    finally:
        os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert 0 < resumed < sum(len(data) for data in undisturbed.values())
    assert found == undisturbed


def test_other_options_do_not_mix(
    checkpoint: Path, partial: Path, undisturbed: dict[str, bytes]
) -> None:
    out = partial.with_suffix("")
    before = files(partial)
    with pytest.raises(OutputError, match=r"unfinished conversion with other options.*--restart"):
        convert(checkpoint, out, PLAIN)
    assert files(partial) == before
    report = convert(checkpoint, out, FOUR_BITS, settings=Settings(restart=True))
    assert report.resumed_bytes == 0
    assert files(out) == undisturbed


def test_verify_notices_a_disk_that_forgets(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_module.FolderWriter.write

    def forget(self: write_module.FolderWriter, name: str, row: int, data: memoryview) -> None:
        write(self, name, row, bytes(len(data)) if "lm_head.scales" in name else data)

    with monkeypatch.context() as context:
        context.setattr(write_module.FolderWriter, "write", forget)
        with pytest.raises(RunError, match=r"lm_head\.weight does not read back as it was written"):
            convert(checkpoint, tmp_path / "out", FOUR_BITS, settings=Settings(verify=True))
    assert not (tmp_path / "out").exists()
    resumed, found = resume(checkpoint, tmp_path / "out.partial")
    convert(checkpoint, tmp_path / "again", FOUR_BITS, settings=Settings(verify=True))
    assert resumed > 0 and found == files(tmp_path / "again")


def test_cached_bytes_are_let_go_of_as_on_macos(tmp_path: Path) -> None:
    """Nothing is lost by it; that the next reads come from the disk shows on a Mac alone."""
    data = os.urandom(100_001)
    for size in (0, len(data)):
        (tmp_path / "file").write_bytes(data[:size])
        with (tmp_path / "file").open("rb") as stream:
            _invalidate(stream.fileno())
        assert (tmp_path / "file").read_bytes() == data[:size]


def test_what_could_not_be_made_durable_is_not_journalled(
    checkpoint: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Systems report a failed sync once; the next one succeeds, and the data is lost."""
    sync, calls = write_module.sync_path, []

    def fail_once(path: Path) -> None:
        calls.append(path)
        if len(calls) == 5:
            raise OSError("Input/output error")
        sync(path)

    with monkeypatch.context() as context:
        context.setattr(write_module, "COMMIT_BYTES", 1)
        context.setattr(write_module, "sync_path", fail_once)
        with pytest.raises(RunError, match="Input/output error"):
            convert(checkpoint, tmp_path / "out", FOUR_BITS)
    assert len(journalled(tmp_path / "out.partial")) == 4
    assert resume(checkpoint, tmp_path / "out.partial")[1] == undisturbed


def test_verify_notices_a_disk_that_fails(checkpoint: Path, tmp_path: Path) -> None:
    def fail(now: Progress) -> None:
        if now.doing == "Verifying":
            (tmp_path / "out.partial" / "model.safetensors").unlink(missing_ok=True)

    with pytest.raises(RunError, match="does not read back as it was written"):
        convert(checkpoint, tmp_path / "out", FOUR_BITS, fail, Settings(verify=True))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("No space left on device")])
def test_what_is_done_outlives_a_failure_at_the_very_end(
    checkpoint: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
) -> None:
    """Once the journal was gone before the folder had its name, and the folder then went too."""
    partial = tmp_path / "out.partial"
    sync = write_module.sync_path

    def fail(path: Path) -> None:
        if path == partial:
            raise failure
        sync(path)

    with monkeypatch.context() as context:
        context.setattr(write_module, "sync_path", fail)
        with pytest.raises((KeyboardInterrupt, RunError)):
            convert(checkpoint, tmp_path / "out", FOUR_BITS)
    assert not (tmp_path / "out").exists()
    resumed, found = resume(checkpoint, partial)
    assert resumed > 0 and found == undisturbed


def test_what_is_done_outlives_a_name_that_is_taken_meanwhile(
    checkpoint: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    other = tmp_path / "out" / "other.txt"

    def take(now: Progress) -> None:
        other.parent.mkdir(exist_ok=True)
        other.touch()

    with pytest.raises(RunError, match=r"cannot write .*out"):
        convert(checkpoint, tmp_path / "out", FOUR_BITS, take)
    other.unlink()
    resumed, found = resume(checkpoint, tmp_path / "out.partial")
    assert resumed > 0 and found == undisturbed


def test_numbers_of_a_resumed_run_are_those_of_one_run(
    checkpoint: Path, partial: Path, undisturbed: dict[str, bytes]
) -> None:
    """Errors measured by the first run are in conversion.json too."""
    _, found = resume(checkpoint, partial)
    report = json.loads(found["conversion.json"])
    errors = [entry["relative_error"] for entry in report["tensors"].values()]
    assert len(errors) > 50 and all(np.isfinite(errors)) and min(errors) > 0.01
