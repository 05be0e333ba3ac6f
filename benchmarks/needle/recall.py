"""Which facts of which documents a model recalled: table, heat map and JSON."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from benchmarks.harness.machine import Machine
from benchmarks.harness.shares import Share, total
from benchmarks.needle.haystack import Needle
from benchmarks.needle.heat_map import HeatMap
from mlx_llama4.cli.console import terminal


@dataclass(frozen=True)
class Asked:
    """One question."""

    needle: Needle
    answer: str
    right: bool
    prompt_tokens: int
    cached_tokens: int  # of the prompt, found in the cache


@dataclass(frozen=True)
class Reading:
    """One document and all its questions."""

    length: int  # as asked for
    tokens: int
    seed: int
    seconds: float  # to the first token of the first answer
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class Recall:
    """All documents that a model read."""

    model: str
    scoring: str
    depths: Sequence[float]
    lifted_limit: int | None  # the model's own limit, if longer documents were read
    readings: Sequence[Reading]
    machine: Machine

    @property
    def lengths(self) -> list[int]:
        return list(dict.fromkeys(reading.length for reading in self.readings))

    def of_length(self, length: int) -> list[Reading]:
        return [reading for reading in self.readings if reading.length == length]

    def share(self, length: int, depth: float) -> Share:
        found = [
            asked.right
            for reading in self.of_length(length)
            for asked in reading.asked
            if asked.needle.depth == depth
        ]
        return Share(sum(found), len(found))

    def share_of_length(self, length: int) -> Share:
        return total([self.share(length, depth) for depth in self.depths])


def print_recall(recall: Recall) -> None:
    terminal.line("recall of facts by depth and length")
    terminal.table(list(_setup(recall).items()))
    terminal.line()
    rows = table_rows(recall)
    terminal.table(rows, right=tuple(range(1, len(rows[0]))))


def _setup(recall: Recall) -> dict[str, str]:
    facts = f"{len(recall.depths)} in each document, one question each, put separately"
    lines = {"model": recall.model, "facts": facts, "right": recall.scoring}
    if recall.lifted_limit is not None:
        lines["context"] = f"beyond the model's own limit of {recall.lifted_limit:,} tokens, lifted"
    return lines | {"machine": str(recall.machine)}


def table_rows(recall: Recall) -> list[tuple[str, ...]]:
    """Right answers and questions: a row for each depth, a column for each length."""
    lengths = recall.lengths
    rows = [("depth", *(f"{length:,} tokens" for length in lengths))]
    for depth in recall.depths:
        rows.append((show_depth(depth), *(str(recall.share(length, depth)) for length in lengths)))
    shares = [recall.share_of_length(length) for length in lengths]
    rows.append(("all", *(f"{share.value:.1%}" for share in shares)))
    rows.append(("95% interval", *(show_interval(share) for share in shares)))
    seconds = [
        statistics.median(reading.seconds for reading in recall.of_length(length))
        for length in lengths
    ]
    rows.append(("reading one", *(f"{one:.1f} s" for one in seconds)))
    return rows


def show_depth(depth: float) -> str:
    return f"{100 * depth:.3g}%"


def show_interval(share: Share) -> str:
    low, high = share.interval
    return f"{low:.0%} to {high:.0%}"


def heat_map(recall: Recall) -> HeatMap:
    return HeatMap(
        title=f"right answers: {recall.model}",
        row_label="depth of the fact",
        rows=[show_depth(depth) for depth in recall.depths],
        column_label="length of the document in tokens",
        columns=[f"{length:,}" for length in recall.lengths],
        shares=[
            [recall.share(length, depth) for length in recall.lengths] for depth in recall.depths
        ],
    )


def as_json(recall: Recall) -> dict[str, Any]:
    """Cells with their intervals, and every question with its answer."""
    cells = [
        {"length": length, "depth": depth, **asdict(share), "interval": share.interval}
        for length in recall.lengths
        for depth in recall.depths
        for share in [recall.share(length, depth)]
    ]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "setup": _setup(recall),
        "machine": asdict(recall.machine),
        "cells": cells,
        "readings": [asdict(reading) for reading in recall.readings],
    }
