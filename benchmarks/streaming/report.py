"""The streaming benchmark's figures: what follows from counts, as tables and as JSON."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from benchmarks.harness.machine import Machine
from benchmarks.harness.ratios import ratio_of_medians
from benchmarks.harness.report import Metric, show_bytes, show_ratio, show_seconds
from benchmarks.harness.rounds import Runs
from benchmarks.streaming.disk import Speed
from mlx_llama4.cli.console import terminal

NOTHING = "–"


def show_share(share: float) -> str:
    return f"{share:.0%}"


def _show_rate(rate: float) -> str:
    return f"{rate:.2f}"


# Shares are of a token's time; reading goes on during all the others. Read-back is the wait for the
# router and for the computing before it.
SPEED = Metric("tokens_per_second", "tokens/s", _show_rate)
DECODING = (
    # CPU seconds depend less on what else the machine does.
    Metric("cpu_seconds_a_token", "processor a token", show_seconds),
    Metric("hit_rate", "hits", show_share),
    Metric("bytes_a_token", "read a token", show_bytes),
    Metric("disk_bytes_a_token", "from the disk", show_bytes),
    Metric("reading_share", "reading", show_share),
    Metric("reading_bytes_per_second", "at, a second", show_bytes),
    Metric("waiting_share", "waiting", show_share),
    Metric("read_back_share", "read-back", show_share),
    Metric("rest_share", "the rest", show_share),
)
PREFILL_AND_MEMORY = (
    Metric("prefill_seconds", "prefill", show_seconds),
    Metric("prefill_bytes_read", "read in it", show_bytes),
    Metric("anonymous_above_idle_bytes", "peak memory", show_bytes),
)


@dataclass(frozen=True)
class Found:
    """All that was measured."""

    setup: Mapping[str, str]  # label → what a reader must know to run it again
    machine: Machine
    runs: Runs  # of rows, by label
    speeds: Sequence[Mapping[str, Speed]]  # an entry per round: what was read → how fast

    def values(self, label: str, key: str) -> list[float]:
        """One value per round; none if the engine does not count it."""
        return [figures[key] for figures in self.runs.figures[label] if key in figures]


def derive(counts: Mapping[str, Mapping[str, float]], tokens: int) -> dict[str, float]:
    """The metrics' values from a process's counts ("decode": of `tokens` tokens; "prefill").

    What the process did not count is absent.
    """
    decode, prefill = counts["decode"], counts["prefill"]
    seconds = decode["seconds"]
    found = {
        "tokens_per_second": tokens / seconds,
        "seconds_a_token": seconds / tokens,
        "cpu_seconds_a_token": decode["cpu_seconds"] / tokens,
        "disk_bytes_a_token": decode["disk_bytes"] / tokens,
        "prefill_seconds": prefill["seconds"],
    }
    if "hits" in decode:
        found["hit_rate"] = decode["hits"] / ((decode["hits"] + decode["misses"]) or 1)
        found["bytes_a_token"] = decode["bytes_read"] / tokens
    if "waiting_seconds" in decode:
        waiting, read_back = decode["waiting_seconds"], decode["read_back_seconds"]
        found |= {
            "reading_share": decode["reading_seconds"] / seconds,
            "waiting_share": waiting / seconds,
            "read_back_share": read_back / seconds,
            "rest_share": 1 - (waiting + read_back) / seconds,
            "read_backs_a_token": decode["read_backs"] / tokens,
            "prefill_bytes_read": prefill["bytes_read"],
        }
        if decode["bytes_read"]:
            found["reading_bytes_per_second"] = decode["bytes_read"] / decode["reading_seconds"]
    return found


def print_found(found: Found, baseline: str) -> None:
    """baseline: the row that the others' speeds are compared with."""
    terminal.line("experts streamed from the disk")
    left_out = [(label, f"left out: {why}") for label, why in found.runs.failures.items()]
    terminal.table([*found.setup.items(), ("machine", str(found.machine)), *left_out])
    terminal.line()
    terminal.table(speed_rows(found.speeds), right=(1, 2))
    terminal.line()
    for rows in (token_rows(found, baseline), _rows(found, PREFILL_AND_MEMORY)):
        terminal.table(rows, right=tuple(range(1, len(rows[0]))))
        terminal.line()


def speed_rows(speeds: Sequence[Mapping[str, Speed]]) -> list[tuple[str, ...]]:
    """Medians of the rounds, and how much of a processor each kept busy."""
    rows: list[tuple[str, ...]] = [("plain reads from the disk", "a second", "processor")]
    for what in speeds[0]:
        rates = [round_[what].bytes_per_second for round_ in speeds]
        busy = [round_[what].cpu_seconds / round_[what].seconds for round_ in speeds]
        cells = (show_bytes(statistics.median(rates)), show_share(statistics.median(busy)))
        rows.append((what, *cells))
    return rows


def token_rows(found: Found, baseline: str) -> list[tuple[str, ...]]:
    """Medians of the rounds; tokens a second also as a ratio to the baseline's, with interval."""
    head, *rows = _rows(found, DECODING)
    table = [(head[0], SPEED.label, "of that in memory", *head[1:])]
    for label, *cells in rows:
        ratio = None
        if baseline in found.runs.figures and label != baseline:
            ratio = ratio_of_medians(
                found.values(label, SPEED.key), found.values(baseline, SPEED.key)
            )
        table.append((label, _median(found, label, SPEED), show_ratio(ratio), *cells))
    return table


def _rows(found: Found, metrics: Sequence[Metric]) -> list[tuple[str, ...]]:
    rows = [("median of rounds", *(metric.label for metric in metrics))]
    for label in found.runs.figures:
        rows.append((label, *(_median(found, label, metric) for metric in metrics)))
    return rows


def as_json(found: Found) -> dict[str, Any]:
    return {
        "subject": "streaming",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "setup": dict(found.setup),
        "machine": asdict(found.machine),
        "plain_reads": [
            {what: asdict(speed) for what, speed in round_.items()} for round_ in found.speeds
        ],
        "rows": {label: list(map(dict, rounds)) for label, rounds in found.runs.figures.items()},
        "left_out": dict(found.runs.failures),
    }


def _median(found: Found, label: str, metric: Metric) -> str:
    values = found.values(label, metric.key)
    return metric.show(statistics.median(values)) if values else NOTHING
