"""What was measured, as a table for reading and as JSON for keeping."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from benchmarks.harness.engines import DISTRIBUTIONS, OURS, Idle
from benchmarks.harness.machine import Machine
from benchmarks.harness.ratios import Ratio, ratio_of_medians
from benchmarks.harness.rounds import Runs
from mlx_llama4.cli.console import terminal
from mlx_llama4.units import human_bytes


@dataclass(frozen=True)
class Metric:
    """A row of the table."""

    key: str  # in a run's figures and in JSON; names the unit
    label: str
    show: Callable[[float], str]  # a value → text with a unit
    compared: bool = True  # whether the table gives ours over the peer's


def show_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def show_milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def show_bytes(count: float) -> str:
    return human_bytes(count)


def show_share(share: float) -> str:
    return f"{share:.1%}"


@dataclass(frozen=True)
class Report:
    """All that is printed, written and drawn."""

    subject: str
    setup: Mapping[str, str]  # label → what a reader must know to run it again
    machine: Machine
    idle: Mapping[str, Idle]  # engine's name → its idle process
    metrics: Sequence[Metric]
    runs: Runs

    def values(self, engine: str, metric: Metric) -> list[float]:
        """One value per round."""
        return [figures[metric.key] for figures in self.runs.figures[engine]]

    def median(self, engine: str, metric: Metric) -> float:
        return statistics.median(self.values(engine, metric))

    def ratio(self, peer: str, metric: Metric) -> Ratio | None:
        """Ours over the peer's; None if ours was not measured or there is no such ratio."""
        if OURS not in self.runs.figures:
            return None
        return ratio_of_medians(self.values(OURS, metric), self.values(peer, metric))


def print_report(report: Report) -> None:
    """Print who ran where and how, then a row for each metric and a column for each engine."""
    terminal.line(report.subject)
    lines: list[tuple[str, ...]] = [*report.setup.items(), ("machine", str(report.machine))]
    for name in report.runs.figures:
        lines.append((name, describe_engine(name, report.idle[name])))
    lines += [(name, f"left out: {reason}") for name, reason in report.runs.failures.items()]
    terminal.table(lines)
    terminal.line()
    rows = table_rows(report)
    terminal.table(rows, right=tuple(range(1, len(rows[0]))))


def describe_engine(name: str, idle: Idle) -> str:
    wanted = (DISTRIBUTIONS[name], "mlx", "torch", "Python")
    versions = [
        f"{package} {idle.versions[package]}" for package in wanted if package in idle.versions
    ]
    return (
        f"{', '.join(versions)}; imported in {show_seconds(idle.seconds)}, "
        f"then {human_bytes(idle.memory.anonymous_bytes)} anonymous"
    )


def table_rows(report: Report) -> list[tuple[str, ...]]:
    """Medians, and after each peer's the ratio of ours to it with its interval."""
    names = list(report.runs.figures)
    header = ["median of rounds" if _rounds(report) > 1 else "one round"]
    for name in names:
        header += [name] if name == OURS else [name, f"{OURS} / {name}"]
    rows = [tuple(header)]
    for metric in report.metrics:
        row = [metric.label]
        for name in names:
            row.append(metric.show(report.median(name, metric)))
            if name != OURS:
                row.append(show_ratio(report.ratio(name, metric)) if metric.compared else "")
        rows.append(tuple(row))
    return rows


def show_ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "–"
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.2f}"
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def as_json(report: Report) -> dict[str, Any]:
    engines: dict[str, Any] = {}
    for name, rounds in report.runs.figures.items():
        engines[name] = {
            "versions": dict(report.idle[name].versions),
            "idle": {"seconds": report.idle[name].seconds} | asdict(report.idle[name].memory),
            "rounds": [dict(figures) for figures in rounds],
            "median": {metric.key: report.median(name, metric) for metric in report.metrics},
        }
        if name != OURS:
            engines[name]["ours_over_this"] = {
                metric.key: asdict(ratio) if (ratio := report.ratio(name, metric)) else None
                for metric in report.metrics
            }
    return {
        "subject": report.subject,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "setup": dict(report.setup),
        "machine": asdict(report.machine),
        "engines": engines,
        "left_out": dict(report.runs.failures),
    }


def _rounds(report: Report) -> int:
    return len(next(iter(report.runs.figures.values())))
