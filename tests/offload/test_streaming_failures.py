"""What goes wrong while experts are read is one clear error, and never a wrong token."""

import errno
import gc
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_llama4.cache.prompt_cache import PromptCache
from mlx_llama4.errors import CheckpointError, InputError, RunError
from mlx_llama4.model.llama4 import Llama4
from mlx_llama4.offload.budget import ExpertStreaming
from mlx_llama4.opening import load_model
from mlx_llama4.quantization import Quantization
from tests import streamed
from tests.golden.cases import text_ids
from tests.proofs import scaled
from tests.streamed import ONE, ONE_A_LAYER, SOME, load_streamed

PROMPT = text_ids(90)
preadv = os.preadv


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return streamed.folder(tmp_path, "maverick", Quantization(32, 4))


@pytest.fixture(scope="module")
def kept_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that leave it as it is."""
    return streamed.folder(tmp_path_factory.mktemp("kept"), "maverick", Quantization(32, 4))


@pytest.fixture(scope="module")
def expected(kept_folder: Path) -> np.ndarray:
    """Logits [90, vocabulary] of the prompt, all experts in memory."""
    return np.array(load_model(kept_folder, mx.float32)(mx.array(PROMPT))[0])


def shard(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


def in_steps(model: Llama4, cache: PromptCache, steps: list[int]) -> np.ndarray:
    """Logits of what the prompt has beyond the cache, which takes in what was computed."""
    parts = []
    try:
        for size in steps:
            held = cache.layers[0].offset
            logits = model(mx.array(PROMPT[:, held : held + size]), cache.layers)
            parts.append(np.array(logits[0]))
    finally:
        cache.record(PROMPT[0], [])
    return np.concatenate(parts)


def test_a_truncated_shard_is_refused_on_loading(folder: Path) -> None:
    os.truncate(shard(folder), shard(folder).stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"safetensors is truncated"):
        load_streamed(folder, SOME)


def test_a_shard_that_cannot_be_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CheckpointError, match=r"cannot read .*safetensors: Permission denied"):
        load_streamed(folder, SOME)


def test_less_than_an_expert(kept_folder: Path) -> None:
    least = streamed.budget(kept_folder, ONE)
    with pytest.raises(InputError, match=r"--expert-memory .*: one expert alone takes"):
        load_model(kept_folder, mx.float32, ExpertStreaming(least - 1))


def test_a_shard_deleted_while_in_use(folder: Path, expected: np.ndarray) -> None:
    model = load_streamed(folder, ONE_A_LAYER)
    shard(folder).unlink()
    cache = PromptCache(model.make_cache())
    assert np.array_equal(in_steps(model, cache, [90]), expected)


def test_a_shard_truncated_while_in_use(folder: Path, expected: np.ndarray) -> None:
    model = load_streamed(folder, ONE_A_LAYER)
    cache = PromptCache(model.make_cache())
    in_steps(model, cache, [10])
    whole = shard(folder).read_bytes()
    os.truncate(shard(folder), len(whole) // 3)
    with pytest.raises(RunError, match=r"safetensors became shorter while it was in use"):
        in_steps(model, cache, [80])
    shard(folder).write_bytes(whole)
    held = len(cache.ids)
    assert np.array_equal(in_steps(model, cache, [90 - held]), expected[held:])


def test_a_read_error(
    kept_folder: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    model = load_streamed(kept_folder, SOME)
    cache = PromptCache(model.make_cache())
    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", fail)
        with pytest.raises(RunError, match=r"cannot read .*safetensors: Input/output error"):
            in_steps(model, cache, [5])
    assert np.array_equal(in_steps(model, cache, [90]), expected)


def test_short_reads_are_gone_on_with(
    kept_folder: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(descriptor: int, views: list[memoryview], offset: int) -> int:
        return preadv(descriptor, [views[0][: (len(views[0]) + 1) // 2]], offset)

    monkeypatch.setattr(os, "preadv", half)
    model = load_streamed(kept_folder, SOME)
    assert np.array_equal(model(mx.array(PROMPT))[0], expected)


@pytest.mark.parametrize("size", [ONE, SOME])
def test_ctrl_c_while_an_expert_is_read(
    kept_folder: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    """A signal, as the terminal sends it, while reads are held up; they then go on writing."""
    model, interrupted = load_streamed(kept_folder, size), threading.Event()
    main = threading.main_thread().ident

    def slow(*arguments: object) -> int:
        if not interrupted.is_set():
            interrupted.set()
            signal.pthread_kill(main, signal.SIGINT)
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", slow)
    cache = PromptCache(model.make_cache())
    with pytest.raises(KeyboardInterrupt):
        in_steps(model, cache, [20, 1, 1])
    held = len(cache.ids)
    assert np.array_equal(in_steps(model, cache, [1] * 20 + [70 - held]), expected[held:])


def test_ctrl_c_while_reads_are_begun(
    kept_folder: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read just begun still writes, late, and nobody has been handed it."""
    model, submit = load_streamed(kept_folder, ONE), ThreadPoolExecutor.submit
    calls, interrupted = itertools.count(), threading.Event()

    def interrupt(*arguments: object) -> Future[None]:
        future = submit(*arguments)
        if next(calls) == 5:
            interrupted.wait(5)
            raise KeyboardInterrupt
        return future

    def late(*arguments: object) -> int:
        first = not interrupted.is_set()
        interrupted.set()
        if first:
            time.sleep(0.3)
        return preadv(*arguments)

    cache = PromptCache(model.make_cache())
    in_steps(model, cache, [10])
    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupt)
    monkeypatch.setattr(os, "preadv", late)
    with pytest.raises(KeyboardInterrupt):
        in_steps(model, cache, [1, 79])
    held = len(cache.ids)
    assert np.array_equal(in_steps(model, cache, [1] * (90 - held)), expected[held:])


class Faults:
    """Stands for os.preadv; fails at some of its calls."""

    def __init__(self, failing: set[int]):
        self.failing, self.calls, self.lock = failing, 0, threading.Lock()

    def __call__(self, descriptor: int, views: list[memoryview], offset: int) -> int:
        with self.lock:
            self.calls += 1
            fails = self.calls in self.failing
        if fails:
            views[0][: len(views[0]) // 2] = bytes(len(views[0]) // 2)  # and leaves a mess
            raise OSError(errno.EIO, "Input/output error")
        return preadv(descriptor, views, offset)


@pytest.fixture(scope="module")
def models(kept_folder: Path) -> Iterator[Callable[[str], Llama4]]:
    loaded = {size: load_streamed(kept_folder, size) for size in (ONE, ONE_A_LAYER, SOME)}
    yield loaded.__getitem__


@pytest.mark.slow
@pytest.mark.prove("streaming")
@settings(
    max_examples=scaled(25, long=500),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    size=st.sampled_from([ONE, ONE_A_LAYER, SOME]),
    failing=st.sets(st.integers(1, 400), max_size=4),
    steps=st.lists(st.sampled_from([1, 2, 7, 64]), min_size=1, max_size=6),
)
def test_faults_anywhere_leave_no_wrong_token(
    models: Callable[[str], Llama4],
    expected: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    size: str,
    failing: set[int],
    steps: list[int],
) -> None:
    model = models(size)
    cache = PromptCache(model.make_cache())
    monkeypatch.setattr(os, "preadv", Faults(failing))
    while (held := len(cache.ids)) < 90:
        step = min(steps[held % len(steps)], 90 - held)
        try:
            found = in_steps(model, cache, [step])
        except RunError:
            continue
        assert np.array_equal(found, expected[held : held + step])


def test_files_are_closed_with_the_model(kept_folder: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("there is no /proc here")

    def opened() -> int:
        links = [one for one in descriptors.iterdir() if one.is_symlink()]
        return sum(one.readlink() == shard(kept_folder) for one in links)

    gc.collect()
    before = opened()
    model = load_streamed(kept_folder, SOME)
    assert opened() == before + 1
    del model
    gc.collect()
    assert opened() == before
