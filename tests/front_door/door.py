"""What the tests of the front door share: a result of the command line, and small inputs for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POEM = "The quick brown fox jumps over the lazy dog.\nWho goes there? A friend, a foe, a fool.\n"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def fails(self, *words: str) -> None:
        """Exit code other than 0, one or two lines that hold the words, no traceback."""
        assert self.code != 0, self.out
        assert "Traceback" not in self.err + self.out
        assert "defect" not in self.err
        lines = self.err.strip().splitlines()
        assert 1 <= len(lines) <= 2, self.err
        assert len(self.err) < 500, self.err
        for word in words:
            assert word in self.err, f"{word!r} is not in {self.err!r}"


Run = Callable[..., Result]


TINY = ("--set", "model.width=16", "--set", "model.layers=1", "--set", "training.evaluations=2")


def data_folder() -> Path:
    """Real corpora for tests that use them."""
    default = Path(__file__).parents[2] / ".." / "shared" / "data"
    return Path(os.environ.get("TEXTWRIGHT_DATA", default))
