"""`python -m benchmarks turns`: how soon an answer begins, turn after turn of a conversation.

Questions and answers are of equal length in tokens: what grows is the conversation behind them.
Beside mlx-lm as `mlx_lm.chat` goes on: each question is rendered alone and fed to its cache.
"""

import json as json_module
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine, Idle, choose_engines
from benchmarks.harness.machine import this_machine
from benchmarks.harness.process import run_measured
from benchmarks.harness.report import Metric, Report, show_milliseconds
from benchmarks.harness.rounds import Figures, run_rounds
from benchmarks.harness.source import Size
from benchmarks.prefill import IDS, LAYERS, scaled_down, write_model
from mlx_llama4.cli.console import terminal
from mlx_llama4.errors import InputError

if TYPE_CHECKING:
    from mlx_llama4.prompt.processor import Processor

PEER = "mlx-lm"
SHOWN = (2, 10, 20, 30)  # turn 1 has the model's first steps in it
TURNS = SHOWN[-1]
ANSWER_TOKENS = 24
HISTORIES = (1_000, 10_000, 100_000)  # tokens

# Each engine's own way through a turn, from the text to the first token: seconds, tokens that the
# cache held, tokens that the prompt ends with.
WAYS = {
    OURS: """
from mlx_llama4.chat.chat import Chat, ChatOptions
chat = Chat.open(Path(folder), ChatOptions(answer_tokens, sampler, prefill_step=step))
def turn(text):
    for _ in chat.send(text):
        pass
    found = chat.statistics
    return found.time_to_first_token, found.cached_tokens, found.prompt_tokens
""",
    PEER: """
from mlx_lm.generate import stream_generate
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load
model, tokenizer = load(folder)
cache = make_prompt_cache(model)
def turn(text):
    start, seconds, held = time.perf_counter(), None, cache[0].offset
    messages = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    options = dict(max_tokens=answer_tokens, sampler=sampler, prefill_step_size=step)
    for _ in stream_generate(model, tokenizer, prompt, prompt_cache=cache, **options):
        seconds = seconds or time.perf_counter() - start
    return seconds, held, held + len(prompt)
""",
}
IMPORTS = {OURS: "mlx_llama4.chat.chat", PEER: "mlx_lm.utils, mlx_lm.generate"}
# Answers are of plain text alone, so that none ends before it is as long as the others.
MEASURE = f"""\
import json, sys, time
from pathlib import Path
import mlx.core as mx
folder = sys.argv[1]
turns, answer_tokens, step = map(int, sys.argv[2:])
def sampler(logits):
    return mx.argmax(logits[..., :{IDS}], axis=-1)
%s
text = "The river was calm in the morning. The old house looked empty after the rain. "
print(json.dumps([turn(f"Question {{number:04d}}. {{text}}") for number in range(turns)]))
"""


@dataclass(frozen=True)
class Turn:
    """seconds: from the text to the first token. held: tokens that the cache had then; tokens:
    with the question.
    """

    seconds: float
    held: int
    tokens: int

    def crosses_border(self, chunk: int) -> bool:
        """While the question is read, rather than the answer before it written."""
        return self.held // chunk < (self.tokens - 1) // chunk


@terminal.reports_errors
def turns(
    scale: Annotated[
        int, typer.Option(metavar="N", help="The releases' sizes divided by 1, 2, 4 … 64.")
    ] = 16,
    rounds: options.Rounds = 5,
    warm_up: options.WarmUp = False,
    only: options.Only = None,
    python: options.Python = None,
    prelude: options.Prelude = None,
    json: options.Json = None,
) -> None:
    """Thirty turns of equal length: seconds to the first token of each answer.

    \b
    Example:
      python -m benchmarks turns --rounds 7 --json turns.json
    """
    outputs = options.Outputs(json, None)
    engines = choose_engines(only or f"{OURS},{PEER}", python or (), prelude or ())
    if unfit := [engine.name for engine in engines if engine.name not in WAYS]:
        raise InputError(f"--only {unfit[0]}: its chat keeps no cache from turn to turn")
    size = scaled_down(scale, LAYERS, experts=16, global_layers=True)
    with tempfile.TemporaryDirectory(prefix="mlx-llama4-benchmark-") as temporary:
        folder = Path(temporary)
        idle = options.ready_engines(engines, IMPORTS, folder)
        with terminal.status("Writing the model"):
            model, dtype = write_model(size, None, folder)
            write_template(model)
        report = _compare(model, dtype, idle, size, rounds, warm_up, folder)
    outputs.publish(report)


def write_template(folder: Path) -> None:
    """The same for all engines; the demo's folder leaves it out."""
    from mlx_llama4.prompt.chat_template import DEFAULT_TEMPLATE

    (folder / "chat_template.jinja").write_text(DEFAULT_TEMPLATE)


def hold_conversation(engine: Engine, model: Path, step: int, folder: Path) -> list[Turn]:
    """All turns, in a process of their own."""
    arguments = (model, TURNS, ANSWER_TOKENS, step)
    output = run_measured(engine.command(MEASURE % WAYS[engine.name], *arguments), folder).output
    return [Turn(*found) for found in json_module.loads(output.splitlines()[-1])]


def _compare(
    model: Path,
    dtype: str,
    idle: Mapping[Engine, Idle],
    size: Size,
    rounds: int,
    warm_up: bool,
    folder: Path,
) -> Report:
    conversations: dict[str, list[Turn]] = {}

    def run_once(engine: Engine) -> Figures:
        found = hold_conversation(engine, model, size.chunk // 4, folder)
        conversations[engine.name] = found
        return figures_of(found, size.chunk, heaviest_turn(found, size))

    runs = run_rounds(list(idle), run_once, rounds, warm_up, terminal.note)
    first = next(iter(conversations.values()))
    return Report(
        subject=f"{TURNS} turns of a conversation: seconds from the question to the first token",
        setup=_setup(model, dtype, size, first, rounds, warm_up),
        machine=this_machine(),
        idle={engine.name: found for engine, found in idle.items()},
        metrics=_metrics(heaviest_turn(first, size)),
        runs=runs,
    )


def figures_of(conversation: Sequence[Turn], chunk: int, heaviest: int) -> Figures:
    """heaviest: which turn takes the most FLOPs a token."""
    seconds = [turn.seconds for turn in conversation]
    crossing = crossings(conversation, chunk)
    beside = {number + way for number in crossing for way in (-1, 1)} - set(crossing)
    return {f"seconds_{number}": seconds[number - 1] for number in range(1, TURNS + 1)} | {
        "seconds_crossing": statistics.median(seconds[number - 1] for number in crossing),
        "seconds_beside": statistics.median(
            seconds[number - 1] for number in beside if 2 <= number <= TURNS
        ),
        "last_over_second": seconds[-1] / seconds[1],
        "heaviest_over_second": seconds[heaviest - 1] / seconds[1],
    }


def crossings(conversation: Sequence[Turn], chunk: int) -> list[int]:
    """Turns, counted from 1, whose question goes over a border between chunks."""
    return [number for number, turn in enumerate(conversation, 1) if turn.crosses_border(chunk)]


def flops(size: Size, tokens: int) -> tuple[float, float]:
    """For a token behind so many others: all, and those of global layers' attention to them.

    The last layer is left out: of it only the last token goes beyond keys and values.
    """
    layers = range(1, size.layers)
    attention = 4 * size.heads * size.head_dim
    queries_and_output = 4 * size.hidden_size * size.heads * size.head_dim
    keys_and_values = 4 * size.hidden_size * size.key_value_heads * size.head_dim
    feed_forward = 2 * 6 * size.hidden_size * size.expert_width
    far = sum(layer % 4 == 0 for layer in layers) * attention * tokens
    near = sum(layer % 4 != 0 for layer in layers) * attention * (tokens % size.chunk)
    matrices = len(layers) * (queries_and_output + keys_and_values + feed_forward)
    return far + near + matrices, far


def heaviest_turn(conversation: Sequence[Turn], size: Size) -> int:
    """Counted from 1: late in the conversation and late in a chunk."""
    return max(
        range(2, TURNS + 1), key=lambda number: flops(size, conversation[number - 1].tokens)[0]
    )


def host_seconds(processor: "Processor", tokens: int) -> float:
    """To make ids of a conversation of so many tokens, half of them the user's: which `Chat` does
    anew each turn. Median of five.
    """
    from mlx_llama4.demo.questions import NOTES

    ids = processor.tokenizer.encode(NOTES)
    exchange = [
        {"role": "user", "content": NOTES},
        {"role": "assistant", "content": NOTES, "token_ids": ids},
    ]
    messages = [*exchange * (tokens // (2 * len(ids))), exchange[0]]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        processor.encode(messages)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _setup(
    model: Path,
    dtype: str,
    size: Size,
    conversation: Sequence[Turn],
    rounds: int,
    warm_up: bool,
) -> dict[str, str]:
    from mlx_llama4.opening import open_folder

    second, last = conversation[1], conversation[-1]
    crossing = ", ".join(map(str, crossings(conversation, size.chunk)))
    heaviest = conversation[heaviest_turn(conversation, size) - 1]
    (every, far), (every_last, far_last), (most, _) = (
        flops(size, turn.tokens) for turn in (second, last, heaviest)
    )
    _, processor = open_folder(model)
    host = ", ".join(
        f"{show_milliseconds(host_seconds(processor, tokens))} behind {tokens:,}"
        for tokens in HISTORIES
    )
    first = "after a warm-up" if warm_up else "no warm-up"
    return {
        "model": f"random {dtype}, {size.layers} layers (every 4th global), hidden size "
        f"{size.hidden_size}, {size.experts} experts, chunks of {size.chunk:,} tokens",
        "a turn": f"{second.tokens - second.held} tokens to read, an answer of {ANSWER_TOKENS}; "
        f"turn {TURNS} is behind {last.held:,} tokens",
        "borders": f"crossed by the questions of turns {crossing}, others by answers",
        "attention": f"to all tokens, in global layers: {far / every:.0%} of a token's FLOPs at "
        f"turn 2, {far_last / every_last:.0%} at turn {TURNS}",
        "FLOPs a token": f"turn {TURNS} over turn 2: {every_last / every:.2f}; the most, late in a "
        f"chunk, over turn 2: {most / every:.2f}",
        "text to ids": f"ours, in the seconds below: {host} tokens, half of them the user's",
        "rounds": f"{rounds}, {first}; a fresh process for each, taking turns",
    }


def _metrics(heaviest: int) -> tuple[Metric, ...]:
    shown = tuple(Metric(f"seconds_{turn}", f"turn {turn}", show_milliseconds) for turn in SHOWN)
    return (
        *shown,
        Metric("last_over_second", f"turn {TURNS} / turn 2", _show_ratio),
        Metric("heaviest_over_second", f"turn {heaviest} / turn 2", _show_ratio),
        Metric("seconds_crossing", "turns that cross a border", show_milliseconds),
        Metric("seconds_beside", "turns beside them", show_milliseconds),
    )


def _show_ratio(ratio: float) -> str:
    return f"{ratio:.2f}"
