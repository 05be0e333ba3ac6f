"""Sources that change, or lead elsewhere, and folders that kills leave."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_llama4.checkpoint.open import open_source
from mlx_llama4.convert import write as write_module
from mlx_llama4.convert.journal import JOURNAL_NAME
from mlx_llama4.convert.run import Progress, convert
from mlx_llama4.convert.write import LOCK_NAME
from mlx_llama4.errors import CheckpointError, OutputError
from tests import tiny
from tests.convert.folders import FOUR_BITS, files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    config = tiny.config("scout")
    folder = tiny.write_checkpoint(tmp_path / "source", config, tiny.tensors(config), shards=3)
    (folder / "LICENSE").write_text("a licence")
    return folder


@pytest.fixture
def out(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stopped about half-way."""
    monkeypatch.setattr(write_module, "COMMIT_BYTES", 1)

    def stop(now: Progress) -> None:
        if now.done > now.total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", FOUR_BITS, stop)
    return tmp_path / "out"


def mended(shard: Path, how: str) -> None:
    """Changes a byte of a shard's data, and keeps its size and time."""
    before = shard.stat()
    data = bytearray(shard.read_bytes())
    data[-1000] ^= 64
    if how == "in place":
        shard.write_bytes(data)
    else:
        other = shard.with_name("other")
        other.write_bytes(data)
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        if how == "mv":
            other.rename(shard)
        else:  # cp -p, rsync --inplace -t
            shutil.copy2(other, shard)
            other.unlink()
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (shard.stat().st_size, shard.stat().st_mtime_ns) == (len(data), before.st_mtime_ns)


@pytest.mark.parametrize("how", ["in place", "mv", "cp -p"])
def test_a_changed_source_with_the_same_size_and_time(
    source: Path, out: Path, tmp_path: Path, how: str
) -> None:
    for shard in sorted(source.glob("*.safetensors")):
        mended(shard, how)
    report = convert(source, out, FOUR_BITS)
    assert report.redone_bytes > 0 and report.resumed_bytes == 0
    convert(source, tmp_path / "fresh", FOUR_BITS)
    assert files(out) == files(tmp_path / "fresh")


def test_a_source_that_was_moved_is_read_again(source: Path, out: Path, tmp_path: Path) -> None:
    """A copy elsewhere has other inodes: right, at the cost of time."""
    moved = Path(shutil.copytree(source, tmp_path / "moved"))
    report = convert(moved, out, FOUR_BITS)
    assert report.redone_bytes > 0 and report.resumed_bytes == 0
    convert(moved, tmp_path / "fresh", FOUR_BITS)
    assert files(out) == files(tmp_path / "fresh")


def test_a_folder_that_is_only_renamed_goes_on(source: Path, out: Path) -> None:
    source = source.rename(source.with_name("renamed"))
    report = convert(source, out, FOUR_BITS)
    assert report.resumed_bytes > 0 and report.redone_bytes == 0


SIDE_FILES = (
    "LICENSE", "USE_POLICY.md", "NOTICE.txt", "chat_template.jinja", "generation_config.json",
    "special_tokens_map.json", "tokenizer_config.json", "processor_config.json",
)  # fmt: skip


@pytest.mark.parametrize("name", SIDE_FILES)
def test_a_side_file_that_links_out_of_the_source(source: Path, tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"SECRET": 1}')
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(secret)
    with pytest.raises(CheckpointError, match=rf"{name} is a link to .*secret, outside the folder"):
        convert(source, tmp_path / "out", FOUR_BITS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("through", ["link to a link", "link to a folder"])
def test_links_by_way_of_others(source: Path, tmp_path: Path, through: str) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/a").write_text("SECRET")
    if through == "link to a link":
        (source / "b").symlink_to(tmp_path / "secrets/a")
        (source / "NOTICE").symlink_to("b")
    else:
        (source / "inner").symlink_to(tmp_path / "secrets")
        (source / "NOTICE").symlink_to("inner/a")
    with pytest.raises(CheckpointError, match="outside the folder"):
        convert(source, tmp_path / "out", FOUR_BITS)


def test_links_within_and_to_the_hubs_blobs_are_followed(source: Path, tmp_path: Path) -> None:
    (source / "NOTICE").symlink_to("LICENSE")
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    blobs = tmp_path / "models--a--b/blobs"
    snapshot.parent.mkdir(parents=True)
    shutil.move(source, snapshot)
    blobs.mkdir()
    (snapshot / "LICENSE").rename(blobs / "4567")
    (snapshot / "LICENSE").symlink_to("../../blobs/4567")
    convert(snapshot, tmp_path / "out", FOUR_BITS)
    assert (tmp_path / "out/LICENSE").read_text() == "a licence"
    assert (tmp_path / "out/NOTICE").read_text() == "a licence"


def test_an_empty_folder_left_by_a_kill_is_taken_over(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    convert(source, tmp_path / "out", FOUR_BITS)
    assert open_source(tmp_path / "out").matching.is_mlx


@pytest.mark.parametrize("kind", ["file in it", "link to an empty folder", "link in it"])
def test_what_is_not_ours_is_left(source: Path, tmp_path: Path, kind: str) -> None:
    partial, other = tmp_path / "out.partial", tmp_path / "other"
    other.mkdir()
    if kind == "link to an empty folder":
        partial.symlink_to(other)
    else:
        partial.mkdir()
        (other / "mine").touch()
        (partial / "mine").symlink_to(other / "mine")
        if kind == "file in it":
            (partial / "mine").unlink()
            (partial / "mine").touch()
    with pytest.raises(OutputError, match="is in the way, and is not ours"):
        convert(source, tmp_path / "out", FOUR_BITS)


def test_a_kill_just_behind_the_rename(source: Path, tmp_path: Path) -> None:
    """The result is whole; the next run says so, and clears away what marked it as unfinished."""
    out = tmp_path / "out"
    convert(source, out, FOUR_BITS)
    whole = files(out)
    for name in (JOURNAL_NAME, LOCK_NAME):
        (out / name).touch()
    with pytest.raises(OutputError, match="was finished by an earlier run, and can be used"):
        convert(source, out, FOUR_BITS)
    assert files(out) == whole
    with pytest.raises(OutputError, match="already exists; name another"):
        convert(source, out, FOUR_BITS)


def journal_values() -> list[Callable[[dict], None]]:
    values: list[object] = [None, "1", [1], {"a": 1}, 1.5, True, -1, 10**30]
    return [
        lambda line, key=key, value=value: line.update({key: value})
        for key in ("job", "stamp", "checksums", "errors")
        for value in values
    ]


def test_journals_of_wrong_types(source: Path, out: Path, tmp_path: Path) -> None:
    """A seeded table of mutations: each ends in the result of an undisturbed run."""
    convert(source, tmp_path / "fresh", FOUR_BITS)
    expected, partial = files(tmp_path / "fresh"), tmp_path / "out.partial"
    kept = Path(shutil.copytree(partial, tmp_path / "kept"))
    text, chance = (partial / JOURNAL_NAME).read_text(), random.Random(0)
    head, *lines = text.splitlines(keepends=True)
    mutants = []
    for change in chance.sample(journal_values(), 6):
        line = json.loads(lines[1])
        del line["crc"]
        change(line)
        mutants.append(head + lines[0] + json.dumps(line) + "\n" + "".join(lines[2:]))
    mutants.append(head + lines[0] + "[" * 100_000 + "\n")
    mutants.append(head + lines[0] + '{"job":' + '{"a":' * 100_000 + "\n")
    for _ in range(3):  # digits, of checksums, errors, numbers
        place = chance.choice([i for i, c in enumerate(text) if c.isdigit() and i > len(head)])
        mutants.append(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    for mutant in mutants:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(kept, partial)
        (partial / JOURNAL_NAME).write_text(mutant)
        convert(source, out, FOUR_BITS)
        assert files(out) == expected
