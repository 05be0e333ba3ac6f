"""The report as a picture: a panel for each metric, a bar for each engine, a dot for each round."""

import importlib.util
import io
from pathlib import Path

from benchmarks.engines import OURS
from benchmarks.report import Report, write_whole
from mlx_llama4.errors import InputError

OURS_COLOR, PEER_COLOR = "#2a6f97", "#b0b7bd"
PANEL_INCHES = (2.3, 3.2)


def check_chart() -> None:
    """Raises InputError if there is nothing to draw with: before hours of work, not after."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--png needs matplotlib; install it: pip install matplotlib")


def write_chart(report: Report, path: Path) -> None:
    """A PNG, whatever the name ends in."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(report.runs.figures)
    width, height = PANEL_INCHES
    count = len(report.metrics)
    figure, panels = pyplot.subplots(
        1, count, figsize=(width * count, height), layout="constrained", squeeze=False
    )
    for panel, metric in zip(panels[0], report.metrics, strict=True):
        medians = [report.median(name, metric) for name in names]
        colors = [OURS_COLOR if name == OURS else PEER_COLOR for name in names]
        bars = panel.bar(names, medians, color=colors)
        panel.bar_label(bars, map(metric.show, medians), fontsize=7, padding=3)
        for index, name in enumerate(names):
            values = report.values(name, metric)
            panel.scatter([index] * len(values), values, color="black", s=6, zorder=3)
        panel.set_title(metric.label, fontsize=8)
        panel.set_yticks([])
        panel.margins(y=0.15)
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(f"{report.subject}\n{report.machine}", fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    pyplot.close(figure)
    write_whole(path, data.getvalue())
