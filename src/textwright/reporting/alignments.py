"""Where a model looked in a source while it wrote: a grid with every token named, for a page or as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure

from textwright.reporting.formats import clean, width
from textwright.reporting.svg import INK, Chart, drawing, inline

_CELL = 22  # chart units of a square
_LETTER = 7.4  # of a terminal column of text
_LONGEST = 18  # columns of a name
_WIDTH = 640  # of a page's charts
_FONTS = [  # for pixels; a browser finds its own
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("PingFang SC", "Microsoft YaHei", "SimHei", "Arial Unicode MS"),
]

Weights = Sequence[Sequence[float]]


def alignment(weights: Weights, rows: Sequence[str], columns: Sequence[str], *, title: str = "") -> Chart:
    """A grid of weights for a page.

    Args:
        weights: a sequence for each row, each weight between 0 and 1.
        rows: the tokens that were written.
        columns: the tokens of the source.
        title: caption of the chart.
    """
    with drawing():
        return inline(_figure(weights, rows, columns, _WIDTH), title, [*rows, *columns])


def save_alignment(path: Path, weights: Weights, rows: Sequence[str], columns: Sequence[str]) -> None:
    """The same as a file of its own, .svg or .png by its name."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    with drawing():
        figure = _figure(weights, rows, columns, 0)
        families = ["DejaVu Sans", *(name for name in _FONTS if name in installed)]
        for text in [*figure.axes[0].get_xticklabels(), *figure.axes[0].get_yticklabels()]:
            text.set_fontfamily(families)
        figure.savefig(path, facecolor="white", dpi=144, metadata={"Date": None} if path.suffix == ".svg" else None)


def _figure(weights: Weights, rows: Sequence[str], columns: Sequence[str], least: float) -> Figure:
    if len(weights) != len(rows) or any(len(row) != len(columns) for row in weights):
        raise ValueError(f"the weights are not {len(rows)} rows of {len(columns)}, as the names say")
    names, heads = [_short(name) for name in rows], [_short(name) for name in columns]
    left, top = (max((width(name) for name in side), default=0) * _LETTER + 12 for side in (names, heads))
    cell = min(_CELL, (_WIDTH - left - 8) / max(len(heads), 1))
    across, down = left + cell * len(heads) + 8, top + cell * len(names) + 8
    total = max(across, least)
    figure = Figure(figsize=(total / 72, down / 72))
    axes = figure.add_axes((left / total, 8 / down, cell * len(heads) / total, cell * len(names) / down))
    axes.imshow(np.array(weights), cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="none")
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(heads)), heads, rotation=90)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    for spine in axes.spines.values():
        spine.set(visible=True, color=INK, linewidth=0.4)
    return figure


def _short(name: str) -> str:
    name = " ".join(clean(name).split()) or "␣"
    while width(name) > _LONGEST:
        name = name[:-2] + "…"
    return name
