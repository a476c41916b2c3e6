"""Dialogues: `.jsonl` with an object a line, whose `turns` are what was said, one speaker after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from textwright.errors import DataError
from textwright.text.sources import json_rows, plain

TURNS = 3  # turns of context

# Between the turns of a source. A line end would be the natural sign, but a source is a line of a file elsewhere, and
# many foreign tokenizers drop line ends. "|" is in the vocabulary of every tokenizer, one byte long, and a word of its
# own thanks to its spaces; nobody says it (0 of the 372,091 turns of the self-dialogue corpus hold it).
SEPARATOR = " | "
EXPECTED = ', such as {"turns": ["Hello!", "Hi."]}'


class Dialogue(NamedTuple):
    """What was said, and where it stands, such as `chats.jsonl:7`."""

    turns: list[str]
    where: str


def compose_dialogue(turns: Sequence[str], limit: int = TURNS) -> str:
    """The source from which the next turn is written: the last `limit` turns that are not blank.

    >>> compose_dialogue(["Hello!", "Hi.", "How are you?"], limit=2)
    'Hi. | How are you?'
    """
    return SEPARATOR.join([turn for turn in turns if turn.strip()][-limit:])


def read_dialogues(path: Path, encoding: str | None) -> Iterator[Dialogue]:
    """The dialogues of a file.

    Raises:
        DataError: the file cannot be read, or a line is not an object whose `turns` is a list of strings.
    """
    for where, row in json_rows(path, encoding):
        if "turns" not in row:
            raise DataError(f"{where}: a dialogue has the field 'turns'{EXPECTED}; the fields are {', '.join(row)}")
        turns = row["turns"]
        if not isinstance(turns, list):
            raise DataError(f"{where}: 'turns' must be a list of strings{EXPECTED}, got {type(turns).__name__}")
        for number, turn in enumerate(turns, 1):
            if not isinstance(turn, str):
                raise DataError(f"{where}: turn {number} must be a string{EXPECTED}, got {type(turn).__name__}")
        yield Dialogue([plain(turn) for turn in turns], where)
