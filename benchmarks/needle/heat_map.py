"""Shares in a grid as a picture: the darker a cell, the more answers are right."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.chart import write_figure
from benchmarks.harness.shares import Share

CELL_INCHES = (0.9, 0.28)
MARGIN_INCHES = (0.9, 1.1)
MIN_WIDTH_INCHES = 4.5
TITLE_CHARACTERS_PER_INCH = 16
DARK = 0.6  # cells from here on have white figures, others black ones


@dataclass(frozen=True)
class HeatMap:
    """A grid of shares and its labels."""

    title: str
    row_label: str
    rows: Sequence[str]
    column_label: str
    columns: Sequence[str]
    shares: Sequence[Sequence[Share]]  # [rows][columns]


def write_heat_map(heat_map: HeatMap, path: Path) -> None:
    """Write a PNG, whatever the name ends in."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    width = max(MIN_WIDTH_INCHES, CELL_INCHES[0] * len(heat_map.columns) + MARGIN_INCHES[0])
    height = CELL_INCHES[1] * len(heat_map.rows) + MARGIN_INCHES[1]
    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    values = [[share.value for share in row] for row in heat_map.shares]
    axes.pcolormesh(values, cmap="Blues", vmin=0, vmax=1, edgecolors="white")
    axes.invert_yaxis()
    for row, shares in enumerate(heat_map.shares):
        for column, share in enumerate(shares):
            color = "white" if share.value > DARK else "black"
            place = (column + 0.5, row + 0.5)
            axes.text(*place, str(share), ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks([column + 0.5 for column in range(len(heat_map.columns))], heat_map.columns)
    axes.set_yticks([row + 0.5 for row in range(len(heat_map.rows))], heat_map.rows)
    axes.set_xlabel(heat_map.column_label, fontsize=8)
    axes.set_ylabel(heat_map.row_label, fontsize=8)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    title = textwrap.fill(heat_map.title, int(width * TITLE_CHARACTERS_PER_INCH))
    figure.suptitle(title, fontsize=8)
    write_figure(figure, path)
