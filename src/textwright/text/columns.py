"""Tables with a column for each side: `.tsv`, `.csv`, `.jsonl` and `.parquet`.

A `.csv` may quote its fields. A `.tsv` is never quoted: corpora in this format are not, and a lone `"` is ordinary text
in them, so a tab or a line end cannot be part of a field.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from textwright.errors import DataError, nearest
from textwright.text.sources import Rows, decoded, json_rows, lines, parquet_rows, plain, suffix

COUPLES = (  # names that need not be given
    ("source", "target"),
    ("src", "tgt"),
    ("input", "output"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("text", "summary"),
    ("document", "summary"),
    ("dialogue", "summary"),
    ("article", "summary"),
    ("article", "highlights"),
)
SHOWN = 40  # characters of a field's name in a message: a headerless table has its first text there
Cells = Iterator[tuple[str, list[str]]]  # (where the row stands, its columns)


def read_rows(path: Path, fields: Sequence[str] | None, encoding: str | None, alone: bool = False) -> Rows:
    """The rows of a table by the names of their columns; "1", "2" and so on where there is no header.

    A table has a header if `fields` are names, and without `fields` if its first row holds a usual couple of them, or
    where the source stands `alone` and in several columns, the usual name of a source.

    Raises:
        DataError: the file cannot be read, or a row has another number of columns than the first.
    """
    kind = suffix(path)
    if kind == ".parquet" and encoding is not None:
        raise DataError(f"{path}: parquet has an encoding of its own: leave out encoding")
    if kind == ".json":
        raise DataError(f"{path}: .json is no table; expected .jsonl, one object a line, .tsv, .csv or .parquet")
    if kind == ".parquet":
        return parquet_rows(path)
    if kind in (".jsonl", ".ndjson"):
        return json_rows(path, encoding)
    return _named(_quoted(path, encoding) if kind == ".csv" else _tabbed(path, encoding), fields, alone)


def couple(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The fields of both sides, told by their usual names, or by there being two columns."""
    found = [pair for pair in COUPLES if pair[0] in row and pair[1] in row] or [("1", "2")] * (set(row) == {"1", "2"})
    if found == [("question", "answer")] and "context" in row:
        raise DataError(
            f"{where} has a context besides question and answer: --task answer reads it from .jsonl; to leave it out, "
            "name the two fields question and answer"
        )
    if len(found) == 1:
        return found[0]
    if len(row) == 1:
        raise DataError(f"{where} has one field, {_names(row)}; expected one for the source and one for the target")
    example = "fields=[1,2]" if "1" in row else "fields=[SOURCE,TARGET]"
    raise DataError(f"{where}: which two fields hold source and target? Name them, {example}: {_names(row)}")


def source_field(row: Mapping[str, Any], fields: Sequence[str] | None, where: str) -> str:
    """The field of the source in a table that need not hold targets."""
    usual = [name for name in dict.fromkeys(pair[0] for pair in COUPLES) if name in row]
    for names in (list((fields or ())[:1]), usual, ["1"], list(row)[:1] * (len(row) == 1)):
        found = [name for name in names if name in row]
        if len(found) == 1:
            return found[0]
    wanted = f"{fields[0]!r}" if fields else "'source'"
    raise DataError(f"{where}: which field holds the source? Call it {wanted}; the fields are {_names(row)}")


def texts(row: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    """The text of a field, or its texts where it is a list of references; nothing counts as an empty text."""
    if field not in row:
        raise DataError(f"{where}: there is no field {field!r}.{nearest(field, map(str, row))}")
    values = row[field] if isinstance(row[field], list) else [row[field]]
    for value in values:
        if not isinstance(value, str | None):
            raise DataError(f"{where}: the field {field!r} must hold text, got {type(value).__name__}")
    return tuple(plain(value or "") for value in values) or ("",)


def text(row: Mapping[str, Any], field: str, where: str) -> str:
    """The text of a field."""
    if isinstance(row.get(field), list):
        raise DataError(f"{where}: the field {field!r} must hold one text, got list")
    return texts(row, field, where)[0]


# Rows of columns -------------------------------------------------------------------------------------------------


def _named(cells: Cells, fields: Sequence[str] | None, alone: bool) -> Rows:
    names: list[str] | None = None
    for where, row in cells:
        if names is None:
            names = _header(row, fields, alone, where)
            if names is row:
                continue
        if len(row) != len(names):
            raise DataError(f"{where} has {_columns(len(row))}; expected {len(names)}, as in the first line")
        yield where, dict(zip(names, row, strict=True))


def _header(first: list[str], fields: Sequence[str] | None, alone: bool, where: str) -> list[str]:
    """`first` itself if it is a header, numbers otherwise."""
    numbers = [str(number) for number in range(1, len(first) + 1)]
    usual = any(pair[0] in first and pair[1] in first for pair in COUPLES)
    if fields is None:
        single = alone and len(first) > 1 and any(pair[0] in first for pair in COUPLES)
        return first if usual or single else numbers
    if usual and all(field.isdecimal() for field in fields):
        raise DataError(f"{where} looks like a header: give names instead of numbers, {_names(first)}")
    known = numbers if all(field.isdecimal() for field in fields) else first
    for field in fields:
        if field not in known:
            advice = "" if known is numbers else "; a table without a header has numbers, fields=[1,2]"
            raise DataError(f"{where} has no column {field!r}; its columns are {_names(known)}{advice}")
    return known


def _tabbed(path: Path, encoding: str | None) -> Cells:
    for number, line in enumerate(lines(decoded(path, encoding, translate=False)), 1):
        if line.strip():
            yield f"{path}:{number}", line.removesuffix("\n").removesuffix("\r").split("\t")


def _quoted(path: Path, encoding: str | None) -> Cells:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KB is less than a long article; C long is 32 bits on Windows
    reader = csv.reader(lines(decoded(path, encoding)), strict=True)
    try:
        for row in reader:
            if row:
                yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        told = "a text with a comma or a quotation mark stands in quotation marks, those inside written twice"
        raise DataError(f"{path}:{reader.line_num}: {error}; {told}") from None


def _columns(number: int) -> str:
    return f"{number} column" + "s" * (number != 1)


def _names(names: Iterable[str]) -> str:
    return ", ".join(name if len(name) <= SHOWN else name[:SHOWN] + "…" for name in map(str, names))
