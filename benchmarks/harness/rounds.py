"""Taking turns: every engine once a round, each round begun by another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.harness.engines import OURS, Engine
from mlx_llama4.errors import RunError

Figures = Mapping[str, float]  # metric's key → value, in seconds or bytes


@dataclass
class Runs:
    """figures: engine's name → one entry a round. An engine that failed is in failures alone."""

    figures: dict[str, list[Figures]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def turns(engines: Sequence[Engine], rounds: int) -> list[list[Engine]]:
    """A B C, then B C A, then C A B: nobody always comes after the same one."""
    starts = [index % len(engines) for index in range(rounds)]
    return [[*engines[start:], *engines[:start]] for start in starts]


def run_rounds(
    engines: Sequence[Engine],
    run_once: Callable[[Engine], Figures],
    rounds: int,
    warm_up: bool,
    on_turn: Callable[[str], None] = lambda text: None,
) -> Runs:
    """Run all rounds. A peer that fails is left out from then on; RunError if ours does.

    warm_up: a round before the first whose figures are not kept.
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
