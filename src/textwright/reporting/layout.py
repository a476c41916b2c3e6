"""What every chart shares: its width, its margins, its ticks, and which numbers an axis can hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from textwright.reporting.formats import clean, number, width

WIDTH = 640  # user units of every chart; the page scales it
SMALLEST, LARGEST = 1e-100, 1e100  # outside these, axes cannot hold a number: it is a gap
_LETTER = 7.4  # one terminal column of text in the same units, with room for wide fonts
_BOTTOM = 44  # room for ticks and the name of the axis
_LONGEST = 34

Floats = NDArray[np.float64]


def sheet(height: float, *, left: float, top: float, right: float) -> tuple[Figure, Axes]:
    """A figure and its axes, with margins in chart units: the layout does not depend on installed fonts."""
    figure = Figure(figsize=(WIDTH / 72, height / 72))
    box = (left / WIDTH, _BOTTOM / height, 1 - (left + right) / WIDTH, 1 - (_BOTTOM + top) / height)
    return figure, figure.add_axes(box)


def margin(names: Sequence[str]) -> float:
    """Room for the longest of the names, as `short` writes them."""
    return max((width(short(name)) for name in names), default=0) * _LETTER + 14


def short(name: str) -> str:
    """A name of at most `_LONGEST` columns; the beginning of a longer one is left out."""
    name = " ".join(clean(name).split())
    if width(name) <= _LONGEST:
        return name
    name = name[-_LONGEST:]
    while width(name) >= _LONGEST:
        name = name[1:]
    return "…" + name


def finite(values: Sequence[float]) -> Floats:
    """The values as an array, with nan where a number is not finite or too large."""
    result = np.array(values, dtype=np.float64).reshape(len(values))
    result[~(np.abs(result) < LARGEST)] = np.nan
    return result


def round_steps(count: int) -> MaxNLocator:
    """About `count` ticks at round numbers."""
    return MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])


def tick(value: float, _: object = None) -> str:
    """A tick's number as text."""
    return number(value, digits=6)
