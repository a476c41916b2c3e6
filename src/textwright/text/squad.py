"""Questions about a text: `.json` in the format of SQuAD (Rajpurkar et al. 2016), or `.jsonl`, one question a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from textwright.errors import DataError
from textwright.text.sources import decoded, json_rows, plain, suffix

FORMAT = '{"data": [{"paragraphs": [{"context": "…", "qas": [{"question": "…", "answers": [{"text": "…"}]}]}]}]}'
LINE = '{"question": "…", "context": "…", "answer": "…"}'
DECODER = json.JSONDecoder()


class Question(NamedTuple):
    """A question, the text that answers it, the acceptable answers (none where the text does not say), its place."""

    question: str
    context: str
    answers: tuple[str, ...]
    where: str


def compose_question(question: str, context: str) -> str:
    """The source from which an answer is written.

    >>> compose_question("Who wrote it?", "Mary wrote it.")
    'question: Who wrote it? context: Mary wrote it.'

    Of an empty question it is empty, too, so that it is left out or refused as other sources are.
    """
    if not question.strip():
        return ""
    return f"question: {question} context: {context}"


def read_questions(path: Path, encoding: str | None) -> Iterator[Question]:
    """The questions of a file, an article at a time: no more than one is held in memory.

    Raises:
        DataError: the file cannot be read, is not JSON or not in one of the formats.
    """
    if suffix(path) in (".jsonl", ".ndjson"):
        for where, row in json_rows(path, encoding):
            yield _question(row, row, where, LINE)
        return
    for number, article in enumerate(_articles(path, encoding), 1):
        where = f"{path}: article {number}"
        for paragraph in _list(article, "paragraphs", where):
            for position, entry in enumerate(_list(paragraph, "qas", where), 1):
                name = entry.get("id", position) if isinstance(entry, dict) else position
                yield _question(entry, paragraph, f"{where}, question {name}", FORMAT)


# What is in a question -------------------------------------------------------------------------------------------


def _question(entry: Any, paragraph: Any, where: str, expected: str) -> Question:
    question = _string(_field(entry, "question", where, expected), where, expected)
    context = _string(_field(paragraph, "context", where, expected), where, expected)
    given = entry["answers"] if "answers" in entry else entry.get("answer", [])
    if isinstance(given, Mapping):  # {"text": [...], "answer_start": [...]}, as data sets saved line by line have it
        given = _field(given, "text", where, expected)
    answers = [
        _field(answer, "text", where, expected) if isinstance(answer, Mapping) else answer
        for answer in (given if isinstance(given, list) else [given])
    ]
    return Question(question, context, tuple(_string(answer, where, expected) for answer in answers), where)


def _field(value: Any, key: str, where: str, expected: str) -> Any:
    if not isinstance(value, Mapping) or key not in value:
        raise DataError(f"{where}: there is no {key!r}; expected {expected}")
    return value[key]


def _list(value: Any, key: str, where: str) -> list[Any]:
    found = _field(value, key, where, FORMAT)
    if not isinstance(found, list):
        raise DataError(f"{where}: {key!r} must be a list, got {type(found).__name__}; expected {FORMAT}")
    return found


def _string(value: Any, where: str, expected: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: expected text, got {type(value).__name__}, in {expected}")
    return plain(value)


# One article after the other -------------------------------------------------------------------------------------


def _articles(path: Path, encoding: str | None) -> Iterator[Any]:
    """The members of the list `data` of the object that the file holds."""
    values = _Values(path, decoded(path, encoding))
    found = False
    values.expect("{")
    while values.next() != "}":
        key = values.value()
        values.expect(":")
        if key == "data" and values.next() == "[":
            found = True
            yield from _members(values)
        else:
            values.value()
        if values.next() != "}":
            values.expect(",")
    if not found:
        raise DataError(f"{path} has no list 'data'; expected {FORMAT}, or {LINE} on each line of a .jsonl file")
    values.expect("}")
    if values.next():
        raise values.wrong("something follows the object")


def _members(values: _Values) -> Iterator[Any]:
    values.expect("[")
    while values.next() != "]":
        yield values.value()
        if values.next() != "]":
            values.expect(",")
    values.expect("]")


class _Values:
    """The values of a JSON text one by one; what has been read is forgotten."""

    def __init__(self, path: Path, chunks: Iterator[str]) -> None:
        self._path, self._chunks = path, chunks
        self._text, self._at = "", 0

    def next(self) -> str:
        """The next character that is not white space, which stays; "" at the end."""
        while True:
            rest = self._text[self._at : self._at + 100]
            self._at += len(rest) - len(rest.lstrip())
            if rest.strip():
                return self._text[self._at]
            if not rest and not self._more():
                return ""

    def expect(self, sign: str) -> None:
        if self.next() != sign:
            raise self.wrong(f"{sign!r} is missing")
        self._at += 1

    def value(self) -> Any:
        self.next()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or not self._more():  # a number that touches the end may go on
                    self._at = end
                    return value
            except RecursionError:
                raise self.wrong("it is nested too deeply") from None
            except ValueError as error:
                if not self._more():
                    raise self.wrong(str(error).partition(":")[0]) from None

    def _more(self) -> bool:
        """Append at least as much as there is, so that a long value is tried a few times only."""
        kept = [self._text[self._at :]]
        size, wanted = 0, max(1, len(kept[0]))
        for chunk in self._chunks:
            kept.append(chunk)
            size += len(chunk)
            if size >= wanted:
                break
        self._text, self._at = "".join(kept), 0
        return size > 0

    def wrong(self, reason: str) -> DataError:
        """An error that shows the place."""
        near = self._text[self._at : self._at + 40]
        place = f"near {near!r}" if near else "at its end"
        return DataError(f"{self._path} is not JSON {place}: {reason}; expected {FORMAT}")
