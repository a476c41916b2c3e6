"""Charts as inline SVG: curves over steps, and bars. The same numbers give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from textwright.reporting.formats import clean, number
from textwright.reporting.layout import LARGEST, SMALLEST, Floats, finite, margin, round_steps, sheet, short, tick
from textwright.reporting.svg import INK, SERIES, Chart, drawing, inline

_POINTS = 1200  # a longer series is thinned to its extremes


@dataclass(frozen=True)
class Series:
    """A named curve; values that are not finite are gaps in it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"series {self.name!r}: {len(self.x)} x values, {len(self.y)} y values")


def lines(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    title: str = "",
    log_y: bool = False,
    marks: Sequence[tuple[float, str]] = (),
) -> Chart:
    """Curves over a shared axis.

    Args:
        series: the curves; any may be empty, constant, or have values that are not finite.
        x: what the horizontal axis counts.
        y: what the vertical axis measures.
        title: caption of the chart.
        log_y: logarithmic vertical axis; values of 0 and below become gaps.
        marks: places on the horizontal axis to point out, such as `(1200, "best")`.
    """
    with drawing():
        figure, axes = sheet(260, left=58, top=26, right=16)
        drawn = [_curve(axes, index, one, log_y) for index, one in enumerate(series)]
        _vertical(axes, np.concatenate([np.empty(0), *drawn]), log_y)
        axes.margins(x=0.015)
        axes.xaxis.set_major_locator(round_steps(8))
        _numbers(axes)
        axes.set_xlabel(clean(x))
        axes.text(0, 1.04, clean(y), transform=axes.transAxes, alpha=0.8)
        for index, (place, label) in enumerate(marks):
            _mark(axes, place, label, index)
        names = tuple(one.name for one in series)
        return inline(figure, title, [f"{y} / {x}", *names], names if len(names) > 1 else ())


def bars(names: Sequence[str], values: Sequence[float], *, unit: str = "", title: str = "") -> Chart:
    """Horizontal bars, one a name, each with its value written behind it."""
    if len(names) != len(values):
        raise ValueError(f"{len(names)} names, {len(values)} values")
    lengths = finite(values)
    with drawing():
        figure, axes = sheet(26 * max(len(names), 1) + 50, left=margin(names), top=6, right=80)
        axes.barh(range(len(names)), np.nan_to_num(lengths), height=0.62, color=SERIES[0])
        for row, (value, shown) in enumerate(zip(values, np.nan_to_num(lengths), strict=True)):
            axes.annotate(number(value), (max(shown, 0), row), (6, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(names)), [short(name) for name in names])
        axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
        axes.xaxis.set_major_locator(round_steps(6))
        axes.xaxis.set_major_formatter(FuncFormatter(tick))
        axes.set_xlabel(clean(unit))
        return inline(figure, title, [unit, *names])


def _curve(axes: Axes, index: int, series: Series, log: bool) -> Floats:
    """Draw one curve; returns the finite heights in it."""
    x, y = finite(series.x), finite(series.y)
    y[~np.isfinite(x) | ((y < SMALLEST) & log)] = np.nan
    kept = _thinned(y)
    x, y = x[kept], y[kept]
    heights: Floats = y[np.isfinite(y)]
    marker = "o" if len(heights) <= 24 else ""
    dashes = "-" if index < len(SERIES) else "--"
    axes.plot(x, y, color=SERIES[index % len(SERIES)], marker=marker, linestyle=dashes, solid_joinstyle="round")
    return heights


def _thinned(y: Floats) -> NDArray[np.intp]:
    """Indices that keep the look of a long series: the extremes of each stretch, its ends and its gaps."""
    if len(y) <= _POINTS:
        return np.arange(len(y))
    gaps = np.flatnonzero(~np.isfinite(y))
    low, high = np.where(np.isfinite(y), y, np.inf), np.where(np.isfinite(y), y, -np.inf)
    stretches = np.array_split(np.arange(len(y)), _POINTS // 2)
    extremes = [part[pick] for part in stretches for pick in (low[part].argmin(), high[part].argmax())]
    return np.unique(np.concatenate([extremes, gaps, [0, len(y) - 1]]).astype(np.intp))


def _vertical(axes: Axes, heights: Floats, log: bool) -> None:
    if not heights.size:
        axes.text(0.5, 0.5, "–", transform=axes.transAxes, ha="center")
        axes.yaxis.set_major_locator(NullLocator())
        return
    decades = np.log10(heights.max()) - np.log10(heights.min()) if log else 0.0
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(numticks=6) if decades > 1.5 else round_steps(6))


def _numbers(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(tick))
    axes.grid(axis="y")


def _mark(axes: Axes, place: float, label: str, index: int) -> None:
    if not np.isfinite(place) or abs(place) > LARGEST:
        return
    axes.axvline(place, color=INK, linewidth=0.9, linestyle=(0, (2, 3)), alpha=0.7)
    low, high = axes.get_xlim()
    leftwards = place > (low + high) / 2
    height = 0.97 - 0.075 * (index % 5)
    spot = (place, height)
    offset = (-6 if leftwards else 6, 0)
    axes.annotate(
        clean(label), spot, offset, xycoords=("data", "axes fraction"), textcoords="offset points",
        ha="right" if leftwards else "left", va="top",
    )  # fmt: skip
