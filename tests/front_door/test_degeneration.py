"""`textwright evaluate RUN --degeneration`: the panel of a tiny run, its advice, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from door import POEM, TINY, Run

from textwright import degeneration_report as module
from textwright.degeneration_report import degeneration_report
from textwright.opening import load_writer

WAYS = ["greedy", "temperature 1", "preset"]


def test_the_panel_beside_real_text(run: Run, trained: dict[str, Path]) -> None:
    result = run("evaluate", trained["lstm"], "--degeneration", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    panels = report["panels"]
    assert list(panels) == [*WAYS, "training text"]  # the held-out text of the poem is short
    assert (report["unit"], report["seed"]) == ("words", 0)
    for panel in panels.values():
        assert 0 <= panel["rep_4"] <= panel["rep_3"] <= panel["rep_2"] <= 100
        assert 0 <= panel["distinct_1"] <= 100
        assert panel["self_bleu"] is None or 0 <= panel["self_bleu"] <= 100 + 1e-9
        assert panel["loop"] >= 0 and panel["loop_times"] != 1
    real = panels["training text"]
    assert real["rep_4"] > 40  # the same two lines again and again
    assert real["loop"] >= 2 * len(POEM.split())
    assert (real["overlap"], real["longest_copy"]) == (None, None)
    assert all(panels[way]["overlap"] == 0 for way in WAYS)  # after twelve steps it writes no words
    assert panels["preset"]["texts"] == real["texts"] > panels["greedy"]["texts"]  # equal beginnings, equal ends


def test_the_table_and_the_seed(run: Run, trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LENGTH", 30)
    words = ("evaluate", trained["transformer"], "--degeneration")
    first = run(*words)
    assert first.code == 0, first.err
    for part in ("rep-4, %", "longest loop, words", "self-BLEU", "verbatim, 8 words", "preset: temperature 0.8"):
        assert part in first.out
    assert run(*words, "--seed", "0").out == first.out
    assert run(*words, "--seed", "1").out != first.out


def test_a_model_that_knows_its_text_by_heart_is_told(run: Run, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("--model", "gru", "--tokenizer", "word", "--steps", "150", "--set", "training.evaluations=1")
    result = run("train", text, *words, "--set", "model.width=32", "--set", "model.layers=1", "--out", out)
    assert result.code == 0, result.err
    report = degeneration_report(load_writer(out), out, n=4, length=60)
    assert report.panels["greedy"].overlap > 50
    assert report.panels["greedy"].longest_copy > 12
    assert any("stand verbatim in the training text" in line for line in report.advice)


def test_without_the_runs_text_the_rest_is_measured(trained: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(trained["lstm"], tmp_path / "run", ignore=shutil.ignore_patterns("data"))
    told: list[int] = []
    report = degeneration_report(load_writer(folder), folder, n=3, length=30, progress=told.append)
    assert 0 < sum(told) <= (1 + 3 + 3) * 30  # greedily one text, for all have the same beginning
    assert list(report.panels) == WAYS
    assert report.reference is None and report.advice == []
    assert report.panels["preset"].texts == 3 and report.panels["greedy"].texts == 1
    assert all(panel.overlap is None for panel in report.panels.values())
    assert "nothing real to compare with" in report.notes[0]


def test_held_out_text_is_the_measure_where_there_is_enough(run: Run, tmp_path: Path) -> None:
    poems = tmp_path / "poems.txt"
    poems.write_text("".join(f"{place}号：床前明月光，疑是地上霜。\n" for place in range(400)), encoding="utf-8")
    out = tmp_path / "run"
    assert run("train", poems, "--steps", "5", "--out", out, *TINY).code == 0
    report = degeneration_report(load_writer(out), out, n=5, length=40)
    assert report.unit == "characters"
    real = report.panels["held-out text"]
    assert real.texts == 5
    assert real.longest_copy > 12  # a line is in the training text but for its number


def test_what_does_not_fit_is_refused(run: Run, trained: dict[str, Path], text: Path) -> None:
    words = ("evaluate", trained["lstm"])
    run(*words, "--degeneration", "--data", text).fails("--data", "--degeneration")
    run(*words, "--degeneration", "--stride", "3").fails("--stride")
    run(*words, "--seed", "3").fails("--seed", "--degeneration")


def test_runs_of_pairs_are_refused(run: Run, tmp_path: Path) -> None:
    for side in ("de", "en"):
        (tmp_path / side).write_text("".join(f"{side} {number}\n" for number in range(60)), encoding="utf-8")
    out = tmp_path / "run"
    pairs = ("--pairs", tmp_path / "de", tmp_path / "en", "--model", "gru", "--set", "model.width=16")
    done = run("train", "--task", "translate", *pairs, "--steps", "2", "--out", out)
    assert done.code == 0, done.err
    run("evaluate", out, "--degeneration").fails("trained to translate", "--degeneration")
