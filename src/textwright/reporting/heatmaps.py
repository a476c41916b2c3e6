"""Heat maps, such as the gradient norm of each layer over the steps of a training."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Real

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from textwright.reporting.formats import clean, number, show
from textwright.reporting.layout import SMALLEST, WIDTH, Floats, finite, margin, round_steps, sheet, short, tick
from textwright.reporting.svg import Chart, drawing, inline

_COLOURS = "viridis"


def heatmap(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[object],
    *,
    x: str = "",
    title: str = "",
    log: bool = True,
) -> Chart:
    """A grid of colours, such as the gradient norm per layer over steps.

    Args:
        values: one sequence per row; what is not finite (with `log` also what is not positive) stays blank.
        rows: a name for each row.
        columns: a name for each column, such as the step; as many as fit are shown.
        x: what the columns are.
        title: caption of the chart.
        log: logarithmic colours.
    """
    grid = _grid(values, len(rows), len(columns), log)
    with drawing():
        height = float(np.clip(19 * len(rows), 60, 420)) + 56
        figure, axes = sheet(height, left=margin(rows), top=12, right=84)
        norm = _norm(grid, log)
        if grid.size:
            axes.imshow(np.ma.masked_invalid(grid), cmap=_COLOURS, norm=norm, aspect="auto", interpolation="none")
        _labels(axes, rows, columns)
        axes.set_xlabel(clean(x))
        _scale(figure, axes, norm, empty=not np.isfinite(grid).any())
        return inline(figure, title, [x, *rows])


def _grid(values: Sequence[Sequence[float]], rows: int, columns: int, log: bool) -> Floats:
    if len(values) != rows or any(len(row) != columns for row in values):
        raise ValueError(f"the values are not {rows} rows of {columns}, as the names of rows and columns say")
    grid = np.array([finite(row) for row in values]).reshape(rows, columns)
    grid[(grid < SMALLEST) & log] = np.nan
    return grid


def _norm(grid: Floats, log: bool) -> Normalize:
    present = grid[np.isfinite(grid)]
    low, high = (present.min(), present.max()) if present.size else (1.0, 1.0)
    if log:
        return LogNorm(low, high) if low < high else LogNorm(low / 2, high * 2)
    return Normalize(low, high) if low < high else Normalize(low - 0.5, high + 0.5)


def _labels(axes: Axes, rows: Sequence[str], columns: Sequence[object]) -> None:
    shown = range(0, len(rows), max(len(rows) // 28, 1))
    axes.set_yticks(shown, [short(rows[index]) for index in shown])
    axes.set_xticks(*_across(columns))
    axes.spines["bottom"].set_visible(False)


def _across(columns: Sequence[object]) -> tuple[list[float], list[str]]:
    """Where to name columns, and the names: round numbers if the columns are rising numbers, else eight at most."""
    counts = [float(name) for name in columns if isinstance(name, Real)]
    if len(counts) == len(columns) > 8 and all(before < after for before, after in pairwise(counts)):
        ticks = round_steps(7).tick_values(counts[0], counts[-1])
        shown = [float(count) for count in ticks if counts[0] <= count <= counts[-1]]
        return [float(np.interp(count, counts, range(len(counts)))) for count in shown], list(map(tick, shown))
    chosen = sorted({int(index) for index in np.linspace(0, len(columns) - 1, 8)}) if len(columns) else []
    return [float(index) for index in chosen], [show(columns[index]) for index in chosen]


def _scale(figure: Figure, axes: Axes, norm: Normalize, empty: bool) -> None:
    """The colour scale: a bar beside the axes with its ends and its middle named."""
    if empty:
        axes.text(0.5, 0.5, "–", transform=axes.transAxes, ha="center")
        return
    box = axes.get_position()
    bar = figure.add_axes((box.x1 + 16 / WIDTH, box.y0, 10 / WIDTH, box.height))
    bar.imshow(np.linspace(1, 0, 64)[:, None], cmap=_COLOURS, aspect="auto", interpolation="none")
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.set_yticks([0, 31.5, 63], [number(float(norm.inverse(part)), 3) for part in (1.0, 0.5, 0.0)])
    bar.spines["bottom"].set_visible(False)
