"""Engines take turns: each runs once a round, and each round begins with another one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.harness.engines import OURS, Engine
from mlx_llama4.errors import RunError

Figures = Mapping[str, float]  # metric's key → value, in seconds or bytes


@dataclass
class Runs:
    """What the rounds found. An engine that failed is in `failures` only."""

    figures: dict[str, list[Figures]] = field(default_factory=dict)  # name → an entry per round
    failures: dict[str, str] = field(default_factory=dict)  # name → why


def turns(engines: Sequence[Engine], rounds: int) -> list[list[Engine]]:
    """A B C, then B C A, then C A B, so that each engine goes first equally often."""
    starts = [index % len(engines) for index in range(rounds)]
    return [[*engines[start:], *engines[:start]] for start in starts]


def run_rounds(
    engines: Sequence[Engine],
    run_once: Callable[[Engine], Figures],
    rounds: int,
    warm_up: bool,
    on_turn: Callable[[str], None] = lambda text: None,
) -> Runs:
    """Run all rounds. A peer that fails is left out of later rounds; RunError if ours fails.

    warm_up: run a round first and drop its figures.
    """
    runs = Runs({engine.name: [] for engine in engines})
    first = 0 if warm_up else 1
    for number, order in enumerate(turns(engines, rounds + 1 - first), first):
        for engine in order:
            if engine.name in runs.failures:
                continue
            on_turn(
                f"round {number} of {rounds}: {engine.name}"
                if number
                else f"warm-up: {engine.name}"
            )
            try:
                figures = run_once(engine)
            except RunError as failure:
                if engine.name == OURS:
                    raise RunError(f"{OURS}: {failure}") from None
                runs.failures[engine.name] = str(failure)
                del runs.figures[engine.name]
                continue
            if number:
                runs.figures[engine.name].append(figures)
    return runs


def describe_rounds(rounds: int, warm_up: bool) -> str:
    return f"{rounds}, {'after a warm-up' if warm_up else 'no warm-up'}"
