"""Tables that read the same in a report, in Markdown and in a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TypeGuard

from textwright.reporting.formats import decimals, fixed, show, width
from textwright.reporting.templates import render

_MARKDOWN = re.compile(r"([\\`*|\[\]])")


@dataclass(frozen=True)
class Table:
    """A finished table: every cell is text. Columns of numbers (`numeric`) are aligned right."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    caption: str = ""

    def html(self) -> str:
        """The table as an HTML fragment, escaped."""
        return render("table.html", block=self)

    def markdown(self) -> str:
        """The table as GitHub-flavoured Markdown."""
        rule = ["---:" if right else "---" for right in self.numeric]
        body = [[_markdown(cell) for cell in row] for row in (self.headings, *self.rows)]
        lines = ["| " + " | ".join(row) + " |" for row in (body[0], rule, *body[1:])]
        return "\n".join([f"**{_markdown(self.caption)}**", "", *lines] if self.caption else lines)

    def text(self) -> str:
        """The table for a terminal; wide (Chinese) characters are aligned too."""
        flat = [[" ".join(cell.split()) for cell in row] for row in (self.headings, *self.rows)]
        widths = [max(map(width, column)) for column in zip(*flat, strict=True)]
        lines = [_line(row, widths, self.numeric) for row in flat]
        lines.insert(1, "  ".join("─" * size for size in widths))
        return "\n".join([self.caption, *lines] if self.caption else lines)


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> Table:
    """Format values into a `Table`; the floats of one column share their number of decimals where that reads well.

    >>> print(table(["model", "loss"], [["gru", 3.14159], ["lstm", 2.9]]).text())
    model   loss
    ─────  ─────
    gru    3.142
    lstm   2.900
    """
    for row in rows:
        if len(row) != len(headings):
            raise ValueError(f"a row has {len(row)} cells, the table has {len(headings)} columns: {list(row)!r}")
    columns = [[row[index] for row in rows] for index in range(len(headings))]
    cells = zip(*map(_column, columns), strict=True)
    numeric = tuple(map(_is_numeric, columns))
    return Table(tuple(map(show, headings)), tuple(cells), numeric, show(caption))


def _column(values: Sequence[object]) -> list[str]:
    floats = [float(value) for value in values if _is_float(value)]
    plain = [value for value in floats if math.isfinite(value) and (value == 0 or 1e-4 <= abs(value) < 1e15)]
    places = {decimals(value) for value in plain}
    if places and max(places) - min(places) <= 3:
        return [fixed(value, max(places)) if _is_float(value) and value in plain else show(value) for value in values]
    return [show(value) for value in values]


def _is_float(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, Integral)


def _is_numeric(values: Sequence[object]) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(value, Real) and not isinstance(value, bool) for value in present)


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = (_pad(cell, size, right) for cell, size, right in zip(cells, widths, numeric, strict=True))
    return "  ".join(padded).rstrip()


def _pad(cell: str, size: int, right: bool) -> str:
    space = " " * (size - width(cell))
    return space + cell if right else cell + space


def _markdown(cell: str) -> str:
    escaped = " ".join(cell.split()).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKDOWN.sub(r"\\\1", escaped)
