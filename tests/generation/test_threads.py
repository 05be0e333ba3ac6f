"""Models in threads of one's own."""

import subprocess
import sys
import threading
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_llama4.generation import wired
from mlx_llama4.generation.threads import model_thread
from mlx_llama4.offload import expert_cache

THREAD = """
import sys, threading
from mlx_llama4 import Chat
from mlx_llama4.generation.batch import Request, generate_batch
from mlx_llama4.generation.threads import model_thread

def work():
    with model_thread():
        chat = Chat.open(sys.argv[1])
        prompt = chat.processor.encode([{"role": "user", "content": "What is 7 plus 5?"}])
        steps = generate_batch(chat.model, chat.processor, [Request(prompt)])
        print("".join(step.text for _, step in steps), "".join(chat.send("Hello"))[:5])

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def ends_well(folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", THREAD, str(folder)], capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "7 plus 5 is 12. Hello\n"


def test_the_interpreter_ends_well(demo_folder: Path) -> None:
    """Without `model_thread` it aborts at its exit, in about half of all runs."""
    for _ in range(2):
        ends_well(demo_folder)


@pytest.mark.slow
def test_the_interpreter_ends_well_each_time(demo_folder: Path) -> None:
    for _ in range(10):
        ends_well(demo_folder)


def test_the_main_thread_keeps_its_streams() -> None:
    with model_thread():
        kept = mx.array([1.0]) + 1
    assert (kept + 1).item() == 3


def test_streams_go_also_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    cleared = []
    monkeypatch.setattr(mx, "clear_streams", lambda: cleared.append(threading.current_thread()))

    def work() -> None:
        with pytest.raises(ZeroDivisionError), model_thread():
            raise ZeroDivisionError

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert cleared == [thread]


def in_threads(work) -> None:
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_limits_are_counted_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's limits are the process's: what each thread adds is taken back, whatever the order."""
    wired_limits, cache_limits = [7], [9]

    def set_limit(limits: list[int], value: int) -> int:
        limits.append(value)
        return limits[-2]

    monkeypatch.setattr(mx, "set_wired_limit", lambda value: set_limit(wired_limits, value))
    monkeypatch.setattr(mx, "set_cache_limit", lambda value: set_limit(cache_limits, value))
    monkeypatch.setattr(mx, "synchronize", lambda: None)
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda _: {"max_recommended_working_set_size": 100})
    monkeypatch.setattr(expert_cache, "_kept_buffers", {"models": 0, "bytes": 0, "otherwise": 0})

    def work() -> None:
        for _ in range(200):
            with wired.wired_memory():
                expert_cache._keep_buffers(5)
                expert_cache._keep_buffers(-5, models=-1)

    in_threads(work)
    assert wired._holders.count == 0 and wired_limits[-1] == 7
    assert expert_cache._kept_buffers["models"] == expert_cache._kept_buffers["bytes"] == 0
    assert cache_limits[-1] == 9
