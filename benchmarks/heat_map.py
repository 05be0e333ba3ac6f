"""Shares in a grid as a picture: the darker, the more is right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chart import write_figure
from benchmarks.shares import Share

CELL_INCHES = (0.9, 0.32)
MARGIN_INCHES = (1.2, 1.1)
DARK = 0.6  # from here on, white figures are read more easily than black ones


@dataclass(frozen=True)
class HeatMap:
    """shares: a row for each of `rows` with an entry for each of `columns`."""

    title: str
    row_label: str
    rows: Sequence[str]
    column_label: str
    columns: Sequence[str]
    shares: Sequence[Sequence[Share]]


def write_heat_map(heat_map: HeatMap, path: Path) -> None:
    """A PNG, whatever the name ends in."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (len(heat_map.columns), len(heat_map.rows))
    inches = [
        cell * count + margin
        for cell, count, margin in zip(CELL_INCHES, size, MARGIN_INCHES, strict=True)
    ]
    figure, axes = pyplot.subplots(figsize=inches, layout="constrained")
    values = [[share.value for share in row] for row in heat_map.shares]
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, shares in enumerate(heat_map.shares):
        for column, share in enumerate(shares):
            color = "white" if share.value > DARK else "black"
            axes.text(column, row, str(share), ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(size[0]), heat_map.columns, fontsize=8)
    axes.set_yticks(range(size[1]), heat_map.rows, fontsize=8)
    axes.set_xlabel(heat_map.column_label, fontsize=8)
    axes.set_ylabel(heat_map.row_label, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.suptitle(heat_map.title, fontsize=8)
    write_figure(figure, path)
