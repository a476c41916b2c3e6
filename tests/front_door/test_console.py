"""What moves on the screen while a text is prepared: lines where nobody watches, a bar on a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from textwright.cli import console
from textwright.cli.console import ConsoleAudience, Patient


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list so that a test can move it."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def audience(terminal: bool) -> tuple[ConsoleAudience, io.StringIO]:
    screen, told = io.StringIO(), ConsoleAudience(Path("runs"))
    told.console = Patient(file=screen, force_terminal=terminal, width=100, highlight=False, soft_wrap=True)
    return told, screen


def two_passes(told: ConsoleAudience, clock: list[float]) -> None:
    for what in ("reading", "encoding train"):
        for characters in range(0, 41_000_000, 1_000_000):
            told.preparing(what, characters)
            clock[0] += 1.0


def test_a_line_every_ten_seconds_where_nobody_watches(clock: list[float]) -> None:
    told, screen = audience(terminal=False)
    two_passes(told, clock)
    lines = screen.getvalue().splitlines()
    assert lines[:3] == ["reading …", "reading: 10.0 million characters", "reading: 20.0 million characters"]
    assert "encoding train …" in lines
    assert lines[-1] == "encoding train: 40.0 of 40 million characters"
    assert len(lines) == 10


def test_a_bar_on_a_terminal_knows_its_end_from_the_pass_before(clock: list[float]) -> None:
    told, _ = audience(terminal=True)
    with told:
        told.preparing("reading", 0.0)
        assert told.bar is not None
        assert told.bar.tasks[0].total is None
        clock[0] += 1
        told.preparing("reading", 8e6)
        assert (told.bar.tasks[0].completed, told.bar.tasks[0].description) == (8e6, "reading, 8.0 M characters")
        told.preparing("reading", 9e6)  # too soon after the one before to be drawn
        assert told.bar.tasks[0].completed == 8e6
        told.preparing("encoding train", 1e6)
        assert told.bar.tasks[0].total == 9e6
    assert told.bar is None
