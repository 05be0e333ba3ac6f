"""`python -m benchmarks turns`: how soon an answer begins, turn after turn of a conversation.

All questions and answers have as many tokens; what grows is the conversation before them. mlx-lm
does as `mlx_lm.chat`: it renders each question alone and feeds it to its cache.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import options
from benchmarks.harness.engines import OURS, Engine
from benchmarks.harness.measuring import Bench, measuring
from benchmarks.harness.presets import PLAIN_IDS
from benchmarks.harness.process import run_measured
from benchmarks.harness.report import Metric, show_milliseconds
from benchmarks.harness.rounds import Figures, describe_rounds, run_rounds
from benchmarks.harness.scaled_model import SCALE, scaled_down, write_model
from benchmarks.harness.source import Size
from mlx_llama4.cli.console import terminal

if TYPE_CHECKING:
    from mlx_llama4.prompt.processor import Processor

PEER = "mlx-lm"
SHOWN = (2, 10, 20, 30)  # turn 1 has the model's first steps in it
TURNS = SHOWN[-1]
ANSWER_TOKENS = 24
HISTORIES = (1_000, 10_000, 100_000)  # tokens

IMPORTS = {OURS: "mlx_llama4.chat.chat", PEER: "mlx_lm.utils, mlx_lm.generate"}


@dataclass(frozen=True)
class Turn:
    """What a turn took."""

    seconds: float  # from the text to the first token
    held: int  # tokens that the cache had before
    tokens: int  # tokens up to the end of the question

    def crosses_border(self, chunk: int) -> bool:
        """Whether reading the question crosses a border between chunks."""
        return self.held // chunk < (self.tokens - 1) // chunk


@terminal.reports_errors
def turns(
    scale: options.Scale = SCALE,
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
    size = scaled_down(scale)
    without = "its chat keeps no cache from turn to turn"
    with measuring(IMPORTS, only, python, prelude, json, others=without) as bench:
        model, dtype = write_model(size, None, bench.folder)
        write_template(model)
        _compare(bench, model, dtype, size, rounds, warm_up)


def write_template(folder: Path) -> None:
    """The same template for all engines: the model has the demo's tokenizer, which lacks one."""
    from mlx_llama4.prompt.template_source import DEFAULT_TEMPLATE

    (folder / "chat_template.jinja").write_text(DEFAULT_TEMPLATE)


def hold_conversation(engine: Engine, model: Path, step: int, folder: Path) -> list[Turn]:
    """Run one process that holds the whole conversation."""
    command = engine.run("turns", model, TURNS, ANSWER_TOKENS, step, PLAIN_IDS)
    return [Turn(*found) for found in run_measured(command, folder).result]


def _compare(bench: Bench, model: Path, dtype: str, size: Size, rounds: int, warm_up: bool) -> None:
    conversations: dict[str, list[Turn]] = {}

    def run_once(engine: Engine) -> Figures:
        found = hold_conversation(engine, model, size.chunk // 4, bench.folder)
        conversations[engine.name] = found
        return figures_of(found, size.chunk, heaviest_turn(found, size))

    runs = run_rounds(bench.engines, run_once, rounds, warm_up, terminal.note)
    first = next(iter(conversations.values()))
    bench.publish(
        f"{TURNS} turns of a conversation: seconds from the question to the first token",
        _setup(model, dtype, size, first, describe_rounds(rounds, warm_up)),
        _metrics(heaviest_turn(first, size)),
        runs,
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
    """Turns, counted from 1, whose questions cross a border between chunks."""
    return [number for number, turn in enumerate(conversation, 1) if turn.crosses_border(chunk)]


def flops(size: Size, tokens: int) -> tuple[float, float]:
    """FLOPs of a token after `tokens` others: all, and those of global layers' attention.

    The last layer is left out: in it, only the prompt's last token needs more than keys and values.
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
    """The turn, counted from 1, with the most FLOPs a token: a late one, late in a chunk."""
    return max(
        range(2, TURNS + 1), key=lambda number: flops(size, conversation[number - 1].tokens)[0]
    )


def host_seconds(processor: "Processor", tokens: int) -> float:
    """Seconds to encode a conversation of `tokens` tokens, half of them the user's: median of five.

    `Chat` encodes the whole conversation in each turn.
    """
    from mlx_llama4.demo.questions import NOTES

    ids = processor.tokenizer.encode(NOTES)
    exchange: list[dict[str, Any]] = [
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
    model: Path, dtype: str, size: Size, conversation: Sequence[Turn], rounds: str
) -> dict[str, str]:
    from mlx_llama4.opening import open_folder

    second, last = conversation[1], conversation[-1]
    crossing = ", ".join(map(str, crossings(conversation, size.chunk)))
    heaviest = conversation[heaviest_turn(conversation, size) - 1]
    (every, far), (every_last, far_last), (most, _) = (
        flops(size, turn.tokens) for turn in (second, last, heaviest)
    )
    processor = open_folder(model).processor
    host = ", ".join(
        f"{show_milliseconds(host_seconds(processor, tokens))} behind {tokens:,}"
        for tokens in HISTORIES
    )
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
        "rounds": f"{rounds}; a fresh process for each, taking turns",
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
