"""Ids become text while they are written."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Detokenizer:
    """Turns ids into text one at a time; the joined output is `Tokenizer.decode` of all of them.

    A character whose bytes are not complete yet is held back.
    """

    def __init__(self, pieces: Sequence[bytes], stripped: str) -> None:
        self._pieces = pieces
        self._stripped = stripped
        self._fresh = bool(stripped)  # at the start of a text or line, where the next space is dropped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, i: int) -> str:
        """The text that the id completes."""
        piece = self._pieces[i]
        data = piece.removeprefix(b" ") if self._fresh else piece
        if piece:
            self._fresh = self._stripped == "line" and piece.endswith(b"\n")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became complete."""
        return self._decoder.decode(b"", final=True)
