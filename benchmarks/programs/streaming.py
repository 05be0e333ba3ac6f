"""Generates given tokens with experts on the disk or all in memory, and prints what it took.

sys.argv[2]: JSON of a row and the settings of the streaming subject. Every engine is fed the same
ids whatever its logits say, so that all are asked for the same experts up to rounding. Ids repeat
as words do in a text: the r-th most frequent one has a share of 1 / r. Prints
{"decode": counts, "prefill": counts}.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

IDS = 1000

Sampler = Callable[[mx.array], mx.array]
Counts = dict[str, float]


@dataclass(frozen=True)
class Way:
    """An engine's own way from a prompt to tokens."""

    tokens: Callable[[np.ndarray, Sampler, int], Iterator[Any]]  # prompt's ids, sampler, count
    counted: Callable[[], Counts]  # since it was loaded
    empty_page_cache: Callable[[], None]  # after each token


def ours(folder: Path, settings: dict[str, Any]) -> Way:
    from mlx_llama4.generation.generate import Wordless, stream_generate
    from mlx_llama4.generation.settings import GenerationSettings
    from mlx_llama4.offload.budget import ExpertStreaming
    from mlx_llama4.offload.expert_cache import ExpertCache, LayerCache
    from mlx_llama4.opening import load_model
    from mlx_llama4.prompt.prompt import Prompt

    budget = settings["budget"]
    streaming = None if budget is None else ExpertStreaming(budget, settings["page_cache"])
    model = load_model(folder, streaming=streaming)
    if settings["fill"]:
        assert isinstance(model.expert_cache, ExpertCache)
        for layer in model.expert_cache.layers.values():
            layer.hold(range(layer.capacity))
    if settings["reads_back"]:
        LayerCache.holds_all = False  # type: ignore[assignment,method-assign]

    def tokens(ids: np.ndarray, sampler: Sampler, count: int) -> Iterator[Any]:
        generation = GenerationSettings(max_tokens=count, sampler=sampler)
        return stream_generate(model, Wordless(), Prompt(ids), generation)

    def counted() -> Counts:
        return dict(vars(model.expert_statistics)) if streaming else {}

    return Way(tokens, counted, empty_page_cache=lambda: None)  # it does so itself


def mlx_vlm(folder: Path, settings: dict[str, Any]) -> Way:
    from mlx_vlm.generate import generate_step
    from mlx_vlm.utils import load_model

    budget = settings["budget"]
    model = load_model(folder, **({} if budget is None else {"expert_cache_gb": budget / 1e9}))

    def tokens(ids: np.ndarray, sampler: Sampler, count: int) -> Iterator[Any]:
        given = mx.array(ids)[None]
        return generate_step(given, model, None, None, max_tokens=count, sampler=sampler)

    def counted() -> Counts:
        if budget is None:
            return {}
        found = model.moe_offload_store.stats()
        hits, misses = found["hits"], found["misses"]
        return {"hits": hits, "misses": misses, "bytes_read": misses * settings["expert_bytes"]}

    def empty_page_cache() -> None:
        if settings["page_cache"]:
            return
        if sys.platform == "darwin":
            raise RuntimeError("macOS cannot empty the page cache for it")
        for file in (folder / "experts").iterdir():
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    return Way(tokens, counted, empty_page_cache)


class ReadingClock:
    """Counts the seconds in which at least one thread is in `os.preadv`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock, self._running, self._began = threading.Lock(), 0, 0.0
        self._preadv = os.preadv
        os.preadv = self._timed

    def _timed(self, *arguments: Any) -> int:
        with self._lock:
            self._began = time.perf_counter() if self._running == 0 else self._began
            self._running += 1
        try:
            return self._preadv(*arguments)
        finally:
            with self._lock:
                self._running -= 1
                self.seconds += 0 if self._running else time.perf_counter() - self._began


def from_disk() -> int:
    """Bytes that came from the disk itself, where the system says so."""
    path = Path("/proc/self/io")
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


class Given:
    """Ids drawn from a seed: prompts, and tokens to give."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        shares = 1 / np.arange(1, IDS + 1)
        self._shares = shares / shares.sum()

    def draw(self, count: int) -> np.ndarray:
        return self._random.choice(IDS, count, p=self._shares).astype(np.int32)

    def sampler(self, count: int) -> Sampler:
        """Chooses `count` drawn ids; waits for the logits as real choosing would."""
        given = map(int, self.draw(count))

        def choose(logits: mx.array) -> mx.array:
            return mx.array([next(given)]) + 0 * mx.argmax(logits, axis=-1).astype(mx.int32)

        return choose


def measure(way: Way, settings: dict[str, Any], clock: ReadingClock) -> dict[str, Counts]:
    warm_up, tokens = settings["warm_up"], settings["tokens"]

    def state() -> Counts:
        seconds = {"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}
        return {
            **seconds,
            "reading_seconds": clock.seconds,
            "disk_bytes": from_disk(),
            **way.counted(),
        }

    def since(before: Counts) -> Counts:
        return {name: value - before[name] for name, value in state().items()}

    ids = Given()
    sampler = ids.sampler(warm_up + tokens + 8)
    steps: Any = way.tokens(ids.draw(settings["prompt"]), sampler, warm_up + tokens)
    for _ in range(warm_up):
        next(steps)
        way.empty_page_cache()
    before, emptying, cpu_emptying = state(), 0.0, 0.0
    for _ in range(tokens):
        next(steps)
        start, cpu_start = time.perf_counter(), time.process_time()
        way.empty_page_cache()
        emptying += time.perf_counter() - start
        cpu_emptying += time.process_time() - cpu_start
    decode = since(before)
    decode["seconds"] -= emptying
    decode["cpu_seconds"] -= cpu_emptying
    steps.close()
    prompt = ids.draw(settings["long_prompt"])
    before = state()
    next(way.tokens(prompt, lambda logits: mx.argmax(logits, axis=-1), 1))
    return {"decode": decode, "prefill": since(before)}


def main(engine: str, told: str) -> None:
    settings = json.loads(told)
    clock = ReadingClock()
    way = {"ours": ours, "mlx-vlm": mlx_vlm}[engine](Path(settings["folder"]), settings)
    print(json.dumps(measure(way, settings, clock)))


main(*sys.argv[1:])
