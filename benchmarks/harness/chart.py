"""A report as a chart: a panel for each metric, a bar for each engine, a dot for each round."""

import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.engines import OURS
from benchmarks.harness.files import write_whole
from benchmarks.harness.report import Metric, Report
from mlx_llama4.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS_COLOR, PEER_COLOR = "#2a6f97", "#b0b7bd"
PANEL_INCHES = (2.8, 2.4)
PANELS_A_ROW = 3


def check_chart() -> None:
    """Raises InputError if matplotlib is missing. Call it before the work, not after."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--png needs matplotlib; install it: pip install matplotlib")


def write_chart(report: Report, path: Path) -> None:
    """Write a PNG, whatever the name ends in."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    width, height = PANEL_INCHES
    rows = -(-len(report.metrics) // PANELS_A_ROW)
    figure, grid = pyplot.subplots(
        rows,
        PANELS_A_ROW,
        figsize=(width * PANELS_A_ROW, height * rows),
        layout="constrained",
        squeeze=False,
    )
    for panel in grid.flat[len(report.metrics) :]:
        panel.set_visible(False)
    for panel, metric in zip(grid.flat, report.metrics, strict=False):
        _draw(panel, report, metric)
    figure.suptitle(f"{report.subject}\n{report.machine}", fontsize=8)
    write_figure(figure, path)


def write_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG, whatever the name ends in, and free the figure."""
    from matplotlib import pyplot

    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    pyplot.close(figure)
    write_whole(path, data.getvalue())


def _draw(panel: "Axes", report: Report, metric: Metric) -> None:
    names = list(report.runs.figures)
    for index, name in enumerate(names):
        median, values = report.median(name, metric), report.values(name, metric)
        panel.bar(index, median, color=OURS_COLOR if name == OURS else PEER_COLOR)
        panel.scatter([index] * len(values), values, color="black", s=6, zorder=3)
        label = metric.show(median)
        panel.annotate(
            label, (index, max(values)), (0, 4), textcoords="offset points", ha="center", fontsize=8
        )
    panel.set_title(metric.label, fontsize=9)
    panel.set_xticks(range(len(names)), names, fontsize=8)
    panel.set_yticks([])
    panel.margins(y=0.15)
    panel.spines[["top", "right", "left"]].set_visible(False)
