"""The command line as a person meets it: arguments in, exit code, standard output and standard error out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from textwright.cli import main as cli

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
        assert 1 <= len(lines) <= 3, self.err
        for word in words:
            assert word in self.err, f"{word!r} is not in {self.err!r}"


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Call the command in this process: as `textwright`, only without the seconds of a start."""

    def call(*words: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["textwright", *map(str, words)])
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return call


TINY = ("--set", "model.width=16", "--set", "model.layers=1", "--set", "training.evaluations=2")


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "poem.txt"
    path.write_text(POEM * 60, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, Path]:
    """One small finished run of each kind."""
    from textwright.api import train

    folder = tmp_path_factory.mktemp("runs")
    settings = {"model.width": 16, "model.layers": 1, "training.evaluations": 2, "training.save_seconds": 0}
    for family in ("transformer", "lstm"):
        more = {"model.window": 16} if family == "transformer" else {}
        train(text, model=family, tokenizer="char", steps=12, out=folder / family, settings={**settings, **more})
    return {family: folder / family for family in ("transformer", "lstm")}


def data_folder() -> Path:
    """Real corpora for tests that use them."""
    default = Path(__file__).parents[2] / ".." / "shared" / "data"
    return Path(os.environ.get("TEXTWRIGHT_DATA", default))
