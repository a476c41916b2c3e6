"""Pairs of a source and a target (translation, summaries, spelling to sounds, questions, dialogues) as a lazy stream.

Memory does not depend on the size of the files, and the order is that of the files. What a format gives is composed
into a source here, in one place for training (`read_pairs`) and for use (`read_sources`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from textwright.errors import DataError
from textwright.text.columns import couple, read_rows, source_field, text, texts
from textwright.text.dialogues import TURNS, compose_dialogue, read_dialogues
from textwright.text.pair_source import PairSource, files_of, kind_of, told_kind
from textwright.text.parallel import read_lines, read_parallel
from textwright.text.sources import TABLES, SourceConfig, fingerprint, suffix
from textwright.text.squad import compose_question, read_questions

__all__ = [
    "Pair",
    "PairSource",
    "Source",
    "compose_dialogue",
    "compose_question",
    "fingerprint_pairs",
    "read_pairs",
    "read_sources",
]


class Pair(NamedTuple):
    """A source and its target.

    Attributes:
        where: where they stand, as in `train.de:17`.
        others: other targets that are as good in an evaluation.
        group: what the source shares with those of other pairs (a paragraph, a dialogue), or "": the pairs of a group
            are trained on or held back together, or else validation would ask about what was read in training.
    """

    source: str
    target: str
    where: str
    others: tuple[str, ...] = ()
    group: str = ""


class Source(NamedTuple):
    """A source without a target, and where it stands."""

    text: str
    where: str


def read_pairs(*sources: PairSource) -> Iterator[Pair]:
    """The pairs of each source in order. A side may be empty, as in the files: see `filters`.

    Raises:
        DataError: a file is missing, unreadable, binary, wrongly encoded or malformed; parallel files have different
            numbers of lines; or no pair of a source has text on both sides.
    """
    for source in sources:
        blank = True
        for path in files_of(source.path):
            for pair in _pairs(source, path):
                blank = blank and not (pair.source.strip() and pair.target.strip())
                yield pair._replace(source=_framed(source, pair.source))
        if blank:
            raise DataError(f"{source.path} holds no pairs: it is empty, or one side of every pair is")


def unframed(source: str, prefixes: Iterable[str]) -> str:
    """A source as somebody wrote it, without the prefix that it begins with."""
    begun = [prefix for prefix in prefixes if source.startswith(prefix)]
    return source.removeprefix(max(begun, key=len, default=""))


def read_sources(path: str, trained: PairSource, encoding: str | None = None) -> Iterator[Source]:
    """The sources of a file for a model that was trained on the pairs of `trained`, composed as they were there.

    Every line of a plain text file is one, blank lines too, so that answers stay beside their lines; so is the source
    field of every row of a table, every question of a .json, and the last turns of every dialogue.

    Raises:
        DataError: as `read_pairs`, but neither targets nor any source at all need be there.
    """
    for file in files_of(path):
        for source in _sources(file, trained, encoding):
            yield source._replace(text=_framed(trained, source.text))


def fingerprint_pairs(*sources: PairSource) -> str:
    """sha256 over the (unpacked) bytes of all files in order; other files or sides that change places change it."""
    digest = hashlib.sha256()
    for source in sources:
        sides = [source.path] if source.target is None else [source.path, source.target]
        for path in [file for side in sides for file in files_of(side)]:
            digest.update(fingerprint(SourceConfig(path=str(path))).encode())
    return digest.hexdigest()


# Composition -----------------------------------------------------------------------------------------------------


def _framed(source: PairSource, text: str) -> str:
    return source.prefix + text if text.strip() else text  # what is empty must stay so, to be noticed


def _pairs(source: PairSource, path: Path) -> Iterator[Pair]:
    kind = kind_of(source, path)
    if kind == "lines":
        return _line_pairs(source, path)
    if kind == "dialogue":
        return _dialogue_pairs(source, path)
    if kind == "squad":
        questions = read_questions(path, source.encoding)
        return (_pair(compose_question(q.question, q.context), q.answers, q.where, q.context) for q in questions)
    return _table_pairs(source, path)


def _line_pairs(source: PairSource, path: Path) -> Iterator[Pair]:
    if source.target is None:
        advice = "name the file of the other one, target=FILE, or kind=table if each line holds both around a tab"
        raise DataError(f"{path} is plain text, which holds one side; {advice}")
    others = files_of(source.target)
    for file in (path, *others):
        if suffix(file) in (*TABLES, ".json"):
            raise DataError(f"{file} is no plain text; if it holds both sides, give it as path and leave out target")
    if len(others) > 1 or len(files_of(source.path)) > 1 or path.resolve() == others[0].resolve():
        raise DataError(f"path {source.path} and target {source.target} must be two files, one for each side")
    for line in read_parallel(path, others[0], source.encoding):
        yield Pair(line.source, line.target, f"{path}:{line.number}")


def _table_pairs(source: PairSource, path: Path) -> Iterator[Pair]:
    names = source.fields
    for where, row in read_rows(path, source.fields, source.encoding):
        names = names or couple(row, where)
        targets = texts(row, names[1], where)
        if source.fields is None and isinstance(row.get("references"), list):
            targets += texts(row, "references", where)
        yield _pair(text(row, names[0], where), targets, where)


def _dialogue_pairs(source: PairSource, path: Path) -> Iterator[Pair]:
    limit = source.turns or TURNS
    for dialogue in read_dialogues(path, source.encoding):
        said: list[str] = []
        group = "\n".join(dialogue.turns)
        for number, turn in enumerate(dialogue.turns, 1):
            if number > 1:
                yield Pair(compose_dialogue(said, limit), turn, f"{dialogue.where} turn {number}", (), group)
            said = [*said, turn][-limit:] if turn.strip() else said


def _pair(source: str, targets: tuple[str, ...], where: str, group: str = "") -> Pair:
    first, *others = dict.fromkeys(targets) or [""]
    return Pair(source, first, where, tuple(other for other in others if other.strip()), group)


def _sources(path: Path, trained: PairSource, encoding: str | None) -> Iterator[Source]:
    columns = trained.kind == "table" or trained.fields is not None  # as the options say: the old file may be gone
    tables = (*TABLES, suffix(Path(trained.path))) if columns else ()
    kind = "table" if suffix(path) in tables else told_kind(path, encoding)
    if kind == "lines":
        return (Source(line, f"{path}:{n}") for n, line in enumerate(read_lines(path, encoding), 1))
    if kind == "dialogue":
        limit = trained.turns or TURNS
        return (Source(compose_dialogue(d.turns, limit), d.where) for d in read_dialogues(path, encoding))
    if kind == "squad":
        return (Source(compose_question(q.question, q.context), q.where) for q in read_questions(path, encoding))
    rows = read_rows(path, trained.fields and trained.fields[:1], encoding, alone=True)
    return (Source(text(row, source_field(row, trained.fields, where), where), where) for where, row in rows)
