"""Prompt caches on disk: what is refused, and what a failure leaves."""

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlx_llama4.cache.prompt_file import PromptFile, save_prompt_file
from mlx_llama4.checkpoint.identity import Identity
from mlx_llama4.config import parse_config
from mlx_llama4.errors import CheckpointError, OutputError, RunError
from mlx_llama4.files import safetensors_file
from mlx_llama4.files.safetensors_file import check_place, write_safetensors
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.quantization import KVQuantization
from tests import tiny
from tests.cache.filled import IDENTITY, filled, text


@pytest.fixture
def saved(golden_model: Callable[[str], Llama4], tmp_path: Path) -> Path:
    path = tmp_path / "saved.safetensors"
    save_prompt_file(path, filled(golden_model("scout"), text(70)), IDENTITY)
    return path


def test_what_is_refused(saved: Path) -> None:
    file = PromptFile(saved)
    with pytest.raises(CheckpointError, match=r"another model \(tiny\) than this one \(other\)"):
        file.check(Identity("other", "other model", "tokenizer"), None)
    with pytest.raises(CheckpointError, match="another tokenizer or chat template"):
        file.check(Identity("tiny", "model", "other"), None)
    with pytest.raises(CheckpointError, match="does not exist; give the path of a prompt cache"):
        PromptFile(saved.with_name("nowhere"))
    with pytest.raises(CheckpointError, match="is a folder; give the path of a prompt cache"):
        PromptFile(saved.parent)


def test_other_packing_is_refused(tmp_path: Path) -> None:
    model, path = Llama4(parse_config(tiny.config("scout", head_dim=32))), tmp_path / "a"
    save_prompt_file(path, filled(model, text(10), KVQuantization(8, 32)), IDENTITY)
    PromptFile(path).check(IDENTITY, None)
    PromptFile(path).check(IDENTITY, KVQuantization(8, 32, after=5))
    with pytest.raises(CheckpointError, match="of 8 bits in groups of 32, not 4 in 32"):
        PromptFile(path).check(IDENTITY, KVQuantization(4, 32))


@pytest.mark.parametrize("length", [0, 5, 100, 3000, -1])
def test_truncated_files(saved: Path, length: int) -> None:
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(
        CheckpointError, match=r"saved.safetensors (is truncated|has a damaged).*make"
    ):
        PromptFile(saved)


def test_files_of_another_kind(saved: Path, golden_folder: Callable[[str], Path]) -> None:
    weights = next(golden_folder("scout").glob("*.safetensors"))
    with pytest.raises(
        CheckpointError, match="is not a prompt cache; make one with: mlx-llama4 cache"
    ):
        PromptFile(weights)
    data = saved.read_bytes()
    for old, new, message in (
        (b'"version":"1"', b'"version":"7"', "of version 7"),
        (b'"held":"70"', b'"held":"xx"', "is damaged; make it again"),
        (b'"packing":"null"', b'"packing":"n0ll"', "is damaged; make it again"),
        (b'"images":"[]"', b'"images":"[3]"'[:13] + b" ", "damaged"),
    ):
        assert old in data
        saved.write_bytes(data.replace(old, new.ljust(len(old))))
        with pytest.raises(CheckpointError, match=message):
            PromptFile(saved)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"held":"70"', b'"held":"69"'),
        (b"layers.3.keys", b"layers.3.kays"),
        (b"layers.3.values", b"layers.9.values"),
        (b'"conversation"', b'"conversatiom"'),
    ],
)
def test_arrays_that_do_not_match(
    saved: Path, golden_model: Callable[[str], Llama4], old: bytes, new: bytes
) -> None:
    data = saved.read_bytes()
    assert old in data
    saved.write_bytes(data.replace(old, new))
    with pytest.raises(CheckpointError, match="is damaged; make it again"):
        PromptFile(saved).load(golden_model("scout").make_cache(), mx.float32)


@contextlib.contextmanager
def disk_of_4_kilobytes() -> Iterator[None]:
    """No file can grow beyond: the system's own refusal, as on a full disk. For no longer than it
    takes: pytest may be writing to a file of its own.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_old_file(
    saved: Path, golden_model: Callable[[str], Llama4]
) -> None:
    before, cache = saved.read_bytes(), filled(golden_model("scout"), text(90))
    message = r"cannot write .*saved.safetensors: File too large"
    with pytest.raises(RunError, match=message), disk_of_4_kilobytes():
        save_prompt_file(saved, cache, IDENTITY)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_an_interruption_leaves_the_old_file(
    saved: Path, golden_model: Callable[[str], Llama4], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, cache = saved.read_bytes(), filled(golden_model("scout"), text(90))

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_llama4.files.safetensors_file.sync_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_prompt_file(saved, cache, IDENTITY)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_nothing_but_a_prompt_cache_is_replaced(
    saved: Path, golden_model: Callable[[str], Llama4], tmp_path: Path
) -> None:
    cache = filled(golden_model("scout"), text(10))
    for name, content in (("a.png", b"\x89PNG"), ("book.txt", b"Call me Ishmael. " * 99)):
        other = tmp_path / name
        other.write_bytes(content)
        with pytest.raises(OutputError, match="exists and is not a prompt cache"):
            save_prompt_file(other, cache, IDENTITY)
        assert other.read_bytes() == content
    saved.write_bytes(saved.read_bytes()[:500])  # cut short it is of no more use
    save_prompt_file(saved, cache, IDENTITY)
    (tmp_path / "empty").touch()
    save_prompt_file(tmp_path / "empty", cache, IDENTITY)
    assert PromptFile(saved).held == PromptFile(tmp_path / "empty").held == 10


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "is a folder; give the name of a file"),
        (tmp_path / "nowhere" / "a", "nowhere is not a folder; create it first"),
    ):
        with pytest.raises(OutputError, match=message):
            write_safetensors(path, {"a": mx.zeros(3)}, {})
    with pytest.raises(OutputError, match=r"needs 1e\+06 TB but only .* are free"):
        check_place(tmp_path / "a", 10**18)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="pipe is not an ordinary file"):
        write_safetensors(tmp_path / "pipe", {"a": mx.zeros(3)}, {})
    assert (tmp_path / "pipe").is_fifo()


def test_what_a_killed_process_left_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its room on the disk counts as free."""
    (tmp_path / "a.partial").write_bytes(bytes(1000))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    check_place(tmp_path / "a", 1000)
    with pytest.raises(OutputError, match=r"needs 1 KB but only 1 KB"):
        check_place(tmp_path / "a", 1001)
    write_safetensors(tmp_path / "a", {"a": mx.arange(3)}, {})
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
    assert mx.array_equal(mx.load(str(tmp_path / "a"), format="safetensors")["a"], mx.arange(3))


def test_two_writers_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first, and neither ever has a part of the other's."""
    path, at_work, go_on = tmp_path / "a", threading.Event(), threading.Event()
    sync = safetensors_file.sync_file

    def slow(descriptor: int) -> None:
        at_work.set()
        go_on.wait(10)
        sync(descriptor)

    def write(value: int) -> None:
        write_safetensors(path, {"a": mx.full((100 * value,), value)}, {})

    monkeypatch.setattr(safetensors_file, "sync_file", slow)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(write, 1)
        assert at_work.wait(10)
        second = pool.submit(write, 2)
        assert not wait([second], 0.2).done
        go_on.set()
        first.result()
        second.result()
    assert mx.array_equal(mx.load(str(path), format="safetensors")["a"], mx.full((200,), 2))
    assert list(tmp_path.iterdir()) == [path]
