"""`python -m benchmarks reuse`: another question about a document, beside the first.

The time to the first token counts from ids to the token; it includes finding caches, cutting them
back or reading them from the disk. Ours alone: peers' caches give wrong answers once they are cut
back over a border between chunks.
"""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from benchmarks.harness import options
from benchmarks.harness.files import temporary_folder
from benchmarks.harness.machine import this_machine
from benchmarks.harness.outputs import Outputs
from benchmarks.harness.presets import PLAIN_IDS
from benchmarks.harness.scaled_model import SCALE, scaled_down, write_model
from benchmarks.harness.source import Size
from mlx_llama4.cli.console import terminal

if TYPE_CHECKING:
    from mlx_llama4.cache.prefixes import PrefixStore
    from mlx_llama4.cache.prompt_cache import PromptCache
    from mlx_llama4.checkpoint.identity import Identity
    from mlx_llama4.model.llama4 import Llama4

QUESTION_TOKENS = 32
ANSWER_TOKENS = 16
WAYS = {
    "first": "the first question, document included",
    "same": "another, in the same process",
    "between": "another, after another document",
    "disk": "another, from disk",
    "small": "another, from disk, --small",
}


@dataclass(frozen=True)
class Asked:
    """One question."""

    seconds: float  # to the first token
    held: int  # tokens of the prompt that the cache had before


Rounds = dict[str, list[Asked]]  # way → a question per round


@terminal.reports_errors
def reuse(
    scale: options.Scale = SCALE,
    chunks: Annotated[int, typer.Option(metavar="N", min=1, help="Chunks of the document.")] = 16,
    rounds: options.Rounds = 3,
    json: options.Json = None,
) -> None:
    """Ask a second question about a document: seconds to the first token, beside the first's.

    \b
    Example:
      python -m benchmarks reuse --rounds 5
    """
    from mlx_llama4.opening import load_model

    outputs = Outputs(json)
    size = scaled_down(scale)
    found: dict[int, Rounds] = {}
    with temporary_folder() as folder:
        path, dtype = write_model(size, None, folder)
        model = load_model(path)
        for tail in (0, size.chunk // 2, size.chunk - 1):
            found[tail] = {way: [] for way in WAYS}
            for number in range(rounds):
                terminal.note(f"{chunks} chunks and {tail} tokens, round {number + 1} of {rounds}")
                tokens = chunks * size.chunk + tail
                for way, asked in ask_in_all_ways(model, size, tokens, number, folder).items():
                    found[tail][way].append(asked)
    _print(found, size, chunks, dtype)
    entries = {
        tail: {way: [vars(asked) for asked in all_asked] for way, all_asked in ways.items()}
        for tail, ways in found.items()
    }
    outputs.write_json({"machine": vars(this_machine()), "chunks": chunks, "tails": entries})


def ask_in_all_ways(
    model: "Llama4", size: Size, tokens: int, seed: int, folder: Path
) -> dict[str, Asked]:
    """Ask about one document of `tokens` tokens. Files go into `folder`."""
    from mlx_llama4.cache.prefixes import PrefixStore
    from mlx_llama4.cache.prompt_cache import PromptCache
    from mlx_llama4.cache.prompt_file import save_prompt_file
    from mlx_llama4.checkpoint.identity import Identity

    random = np.random.default_rng(seed)
    document, other, *questions = (
        random.integers(0, PLAIN_IDS, length).astype(np.int32)
        for length in (tokens, 2 * size.chunk, *[QUESTION_TOKENS] * len(WAYS))
    )
    prompts = [np.concatenate([document, question]) for question in questions]
    identity = Identity("random", "model", "tokenizer")
    reader = _Reader(model, size.chunk // 4, PrefixStore(size.chunk, 10**10))
    cache = PromptCache(model.make_cache())
    document_read = reader.read(cache, document)
    reader.store.keep_tail(cache)
    for way in ("disk", "small"):
        save_prompt_file(folder / way, cache, identity, small=way == "small")
    first = reader.read(cache, prompts[0])
    found = {"first": Asked(document_read.seconds + first.seconds, 0)}
    reader.answer(cache)
    found["same"] = reader.read(cache, prompts[1])
    reader.read(cache, other)
    found["between"] = reader.read(cache, prompts[2])
    # A fresh store, as in another process: what this one remembers does not count.
    reader = _Reader(model, size.chunk // 4, PrefixStore(size.chunk, 0))
    for way, prompt in zip(("disk", "small"), prompts[3:], strict=True):
        found[way] = reader.read_from(folder / way, identity, prompt)
    return found


class _Reader:
    """Reads prompts as `Chat` does, but from ids."""

    def __init__(self, model: "Llama4", step: int, store: "PrefixStore"):
        self.model = model
        self.step = step
        self.store = store

    def read(self, cache: "PromptCache", ids: np.ndarray) -> Asked:
        """Read a prompt, up to the first token after it."""
        import mlx.core as mx

        from mlx_llama4.generation.prefill import prefill
        from mlx_llama4.prompt.prompt import Prompt

        start = time.perf_counter()
        cache.reserve(len(ids) + 256)
        held = self.store.fit(cache, ids, ())
        logits = prefill(self.model, Prompt(ids), cache.layers, span=self.step)
        mx.eval(mx.argmax(logits), cache.arrays)
        seconds = time.perf_counter() - start
        cache.record(ids, ())
        return Asked(seconds, held)

    def answer(self, cache: "PromptCache") -> None:
        """Decode tokens as an answer would; which ones does not matter."""
        import mlx.core as mx

        ids = np.arange(ANSWER_TOKENS, dtype=np.int32)
        for token in ids:
            mx.eval(self.model(mx.array(token.reshape(1, 1)), cache.layers))
        cache.record(np.concatenate([cache.ids, ids]), ())

    def read_from(self, path: Path, identity: "Identity", ids: np.ndarray) -> Asked:
        from mlx_llama4.cache.prompt_file import PromptFile

        start = time.perf_counter()
        file = PromptFile(path)
        file.check(identity, None)
        dtype = self.model.language_model.model.norm.weight.dtype
        cache = file.load(self.model.make_cache(), dtype).cache
        opened = time.perf_counter() - start
        asked = self.read(cache, ids)
        return Asked(opened + asked.seconds, asked.held)


def _print(found: dict[int, Rounds], size: Size, chunks: int, dtype: str) -> None:
    terminal.line("time to the first token of another question, beside the first's")
    terminal.table(
        [
            (
                "model",
                f"random {dtype}, {size.layers} layers (every 4th global), hidden size "
                f"{size.hidden_size}, chunks of {size.chunk} tokens",
            ),
            ("document", f"{chunks} chunks, and the tokens that head the columns"),
            ("then", f"a question of {QUESTION_TOKENS} tokens; the first got {ANSWER_TOKENS} back"),
            ("machine", str(this_machine())),
        ]
    )
    terminal.line()
    rows = [("median of rounds", *(f"+ {tail}" for tail in found))]
    for way, what in WAYS.items():
        cells = []
        for ways in found.values():
            median, first = (
                statistics.median(asked.seconds for asked in ways[one]) for one in (way, "first")
            )
            share = median / first
            cells.append(f"{median:.2f} s" if way == "first" else f"{median:.2f} s {share:6.1%}")
        rows.append((what, *cells))
    terminal.table(rows, right=tuple(range(1, len(rows[0]))))
