"""What a process of the streaming benchmark runs: one engine, one budget, tokens that are given.

Every engine is fed the same ids whatever its logits say, so that all are asked for the same
experts up to rounding. Ids repeat as words do in a text: the r-th most frequent one has a share of
1 / r.
"""

from benchmarks.harness.engines import OURS

IDS = 1000

IMPORTS = {
    OURS: "mlx_llama4.opening, mlx_llama4.generation.generate",
    "mlx-vlm": "mlx_vlm.utils, mlx_vlm.generate",
}
# Each engine's own way from a prompt to tokens, and what it counts since it was loaded.
WAYS = {
    OURS: """
from mlx_llama4.generation.generate import generate
from mlx_llama4.opening import load_model
from mlx_llama4.offload.budget import ExpertStreaming
from mlx_llama4.offload.expert_cache import LayerCache
from mlx_llama4.prompt.prompt import Prompt
budget = settings["budget"]
streaming = None if budget is None else ExpertStreaming(budget, settings["page_cache"])
model = load_model(folder, streaming=streaming)
if settings["fill"]:
    for layer in model.expert_cache.layers.values():
        layer.hold(range(layer.capacity))
if settings["reads_back"]:
    LayerCache.holds_all = False
def tokens(ids, sampler, count):
    options = dict(token_bytes=lambda token: b"", end_tokens=(), max_tokens=count)
    return generate(model, Prompt(ids), sampler=sampler, **options)
def counted():
    return vars(model.expert_statistics).copy() if streaming else {}
def empty_page_cache():
    pass  # it does so itself
""",
    "mlx-vlm": """
from mlx_vlm.generate import generate_step
from mlx_vlm.utils import load_model
budget = settings["budget"]
model = load_model(folder, **({} if budget is None else {"expert_cache_gb": budget / 1e9}))
def tokens(ids, sampler, count):
    return generate_step(mx.array(ids)[None], model, None, None, max_tokens=count, sampler=sampler)
def counted():
    if budget is None:
        return {}
    found = model.moe_offload_store.stats()
    hits, misses = found["hits"], found["misses"]
    return {"hits": hits, "misses": misses, "bytes_read": misses * settings["expert_bytes"]}
def empty_page_cache():
    if not settings["page_cache"]:
        for file in (folder / "experts").iterdir():
            with file.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
""",
}
MEASURE = f"""\
import json, os, sys, threading, time
from pathlib import Path
import mlx.core as mx, numpy as np
settings = json.loads(sys.argv[1])
folder = Path(settings["folder"])

lock, running, began, reading_seconds = threading.Lock(), 0, 0.0, 0.0
preadv = os.preadv
def timed_preadv(*arguments):
    "As preadv; counts the seconds in which at least one thread reads."
    global running, began, reading_seconds
    with lock:
        began = time.perf_counter() if running == 0 else began
        running += 1
    try:
        return preadv(*arguments)
    finally:
        with lock:
            running -= 1
            reading_seconds += 0 if running else time.perf_counter() - began
os.preadv = timed_preadv

def from_disk():
    "Bytes that came from the disk itself, where the system says so."
    path = Path("/proc/self/io")
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
def state():
    seconds = {{"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}}
    seconds["reading_seconds"] = reading_seconds
    return seconds | {{"disk_bytes": from_disk()}} | counted()
def since(before):
    return {{name: value - before[name] for name, value in state().items()}}

random = np.random.default_rng(0)
shares = 1 / np.arange(1, {IDS} + 1)
def draw(count):
    return random.choice({IDS}, count, p=shares / shares.sum()).astype(np.int32)
given = map(int, draw(settings["warm_up"] + settings["tokens"] + 8))
def next_given(logits):
    "The token that is given; waits for the logits as choosing one would."
    return mx.array([next(given)]) + 0 * mx.argmax(logits, axis=-1).astype(mx.int32)

%s
steps = tokens(draw(settings["prompt"]), next_given, settings["warm_up"] + settings["tokens"])
for _ in range(settings["warm_up"]):
    next(steps)
    empty_page_cache()
before, emptying, cpu_emptying = state(), 0.0, 0.0
for _ in range(settings["tokens"]):
    next(steps)
    start, cpu_start = time.perf_counter(), time.process_time()
    empty_page_cache()
    emptying += time.perf_counter() - start
    cpu_emptying += time.process_time() - cpu_start
decode = since(before)
decode["seconds"] -= emptying
decode["cpu_seconds"] -= cpu_emptying
steps.close()
prompt = draw(settings["long_prompt"])
before = state()
next(tokens(prompt, lambda logits: mx.argmax(logits, axis=-1), 1))
print(json.dumps({{"decode": decode, "prefill": since(before)}}))
"""
REPACK = """\
import sys
from mlx_vlm.moe_offload import repack
repack(sys.argv[1], sys.argv[2])
"""
