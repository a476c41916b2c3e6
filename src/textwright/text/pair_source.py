"""What a source of pairs is: the files it names, and how what is in them is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from textwright.config import Config
from textwright.errors import DataError
from textwright.text.sources import TABLES, SourceConfig, files, json_rows, suffix

Kind = Literal["lines", "table", "dialogue", "squad"]
SHOWN = 12  # files of a folder in a message


class PairSource(Config):
    """One source of pairs.

    Attributes:
        path: the source side of two parallel files, or a file (or a glob) that holds both sides.
        target: the target side of parallel files: line i belongs to line i of `path`.
        fields: the columns of a table that hold source and target: names, or numbers ("1" is the first) for a .tsv or
            .csv without a header. Not needed for two columns without a header and for usual names such as
            source/target, text/summary, question/answer. The target may be a list of acceptable references.
        encoding: detected unless it is given.
        kind: `lines` (parallel files), `table` (.tsv, .csv, .jsonl, .parquet; anything else is read like .tsv),
            `dialogue` (.jsonl whose `turns` is a list of strings; every turn but the first is a target), `squad` (.json
            in SQuAD's format, .jsonl with question, context and answer). `auto` tells from the other options, the
            file's name and the first row of a .jsonl.
        turns: of a dialogue: how many turns of context a source holds; 3 unless given.
        prefix: put in front of every source, such as "summarize: ", so that one model can serve several tasks.
    """

    path: str
    target: str | None = None
    fields: tuple[str, str] | None = None
    encoding: str | None = None
    kind: Literal["auto", "lines", "table", "dialogue", "squad"] = "auto"
    turns: int | None = Field(None, gt=0)
    prefix: str = ""

    @field_validator("fields", mode="before")
    @classmethod
    def _numbered(cls, value: Any) -> Any:
        """[2, 1], which people write, means ["2", "1"]."""
        if isinstance(value, list | tuple):
            return tuple(str(field) if type(field) is int else field for field in value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        given = _given(self)
        if self.kind != "auto" and (wrong := [name for name in given if given[name] != self.kind]):
            raise ValueError(
                f"{wrong[0]} belongs to kind {given[wrong[0]]!r}, not {self.kind!r}: leave out one of them"
            )
        if len(given) > 1:
            uses = "target is for parallel files, fields for tables, turns for dialogues"
            raise ValueError(f"{' and '.join(given)} exclude each other: {uses}")
        if self.kind == "lines" and self.target is None:
            raise ValueError("kind 'lines' needs the file of the other side: target=FILE")
        if self.path.startswith(("builtin:", "hf:")):
            raise ValueError("pairs are read from files: save the data set as .jsonl first")
        if self.fields and self.fields[0] == self.fields[1]:
            raise ValueError(f"both sides would be the field {self.fields[0]!r}")
        return self


def _given(source: PairSource) -> dict[str, Kind]:
    """The options that only one kind has, and that kind."""
    owners: dict[str, Kind] = {"target": "lines", "fields": "table", "turns": "dialogue"}
    values = {"target": source.target, "fields": source.fields, "turns": source.turns}
    return {name: owners[name] for name, value in values.items() if value is not None}


def kind_of(source: PairSource, path: Path) -> Kind:
    """What a file of `source` holds: what the options say, else what can be told from the file."""
    if source.kind != "auto":
        return source.kind
    asked = list(_given(source).values())
    return asked[0] if asked else told_kind(path, source.encoding)


def holds_contexts(source: PairSource) -> bool:
    """Its sources are questions with their texts, as far as the options and the file's name tell."""
    return source.kind == "squad" or (source.kind == "auto" and suffix(Path(source.path)) == ".json")


def files_of(name: str) -> list[Path]:
    """The files of a path or a glob; a folder is refused, because it does not say which file belongs to which side."""
    path = Path(name).expanduser()
    if path.is_dir():
        inside = [file.name for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
        found = ", ".join(inside[:SHOWN]) + (" …" if len(inside) > SHOWN else "") if inside else "no files"
        raise DataError(f"{name} is a folder; expected a file for each side, or one with both. In it: {found}")
    return files(SourceConfig(path=name))


def told_kind(path: Path, encoding: str | None) -> Kind:
    """What is in a file, by its suffix and, for .jsonl, by its first row."""
    kind = suffix(path)
    if kind not in (".jsonl", ".ndjson"):
        return "squad" if kind == ".json" else "table" if kind in TABLES else "lines"
    _, row = next(json_rows(path, encoding), ("", {}))
    if "turns" in row:
        return "dialogue"
    return "squad" if {"question", "context"} <= row.keys() else "table"
