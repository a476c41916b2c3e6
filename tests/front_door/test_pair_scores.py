"""`evaluate` and `compare` of models with a source: what is judged, how, and what is refused before any writing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from door import Run

from textwright.api import train_pairs
from textwright.errors import ConfigError
from textwright.opening import load_pairs
from textwright.pair_scores import baseline_scores, evaluate_pairs
from textwright.text.bitext import raw_pairs
from textwright.text.pairs import PairSource, unframed

SETTINGS = {"model.width": 16, "model.layers": 1, "training.evaluations": 1}


@pytest.fixture(scope="module")
def translators(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]) -> dict[str, Path]:
    """Two of the same pairs: one is judged without case and reads sources of any length, the other up to 64 tokens."""
    folder = tmp_path_factory.mktemp("translators")
    source = PairSource(path=str(files["train.digits"]), target=str(files["train.words"]))
    for name, more in (
        ("gru", {"lowercase": True}),
        ("transformer", {"model.inner": 32, "model.heads": 2, "model.source_window": 64}),
    ):
        train_pairs("translate", source, model=name, steps=4, out=folder / name, settings={**SETTINGS, **more})
    return {name: folder / name for name in ("gru", "transformer")}


def test_validation_pairs_are_not_called_test_pairs(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    valid = PairSource(path=str(files["test.tsv"]))
    source = PairSource(path=str(files["train.tsv"]))
    train_pairs("convert", source, valid=valid, model="gru", steps=4, out=out, settings=SETTINGS)
    done = run("evaluate", out, "--json")
    assert done.code == 0, done.err
    assert "no test pairs: these are its validation pairs" in done.err


def test_copying_the_source_does_not_copy_the_prefix(files: dict[str, Path], tmp_path: Path) -> None:
    table = tmp_path / "same.tsv"
    table.write_text("".join(f"{number}\t{number}\n" for number in range(300)), encoding="utf-8")
    source, out = PairSource(path=str(table), prefix="say: "), tmp_path / "run"
    model = train_pairs("convert", source, model="gru", steps=4, out=out, settings=SETTINGS)
    held = raw_pairs(out / "data" / "test")
    assert all(pair.source.startswith("say: ") for pair in held)
    (exact,) = [one for one in baseline_scores(model, out, held)["copying the source"] if one.name == "exact"]
    assert exact.value == 100
    page = (out / "report.html").read_text(encoding="utf-8")
    (row,) = re.findall(r"<tr>\s*<td[^>]*>exact</td>.*?</tr>", page, re.DOTALL)
    assert re.findall(r"<td[^>]*>([\d.]+)</td>", row)[-1] == "100", row
    assert unframed("say: 42", ["", "say: "]) == "42" == unframed("42", ["say: "])


def test_two_runs_are_judged_in_one_way(run: Run, translators: dict[str, Path], files: dict[str, Path]) -> None:
    first, second = translators["gru"], translators["transformer"]
    pairs = ("--pairs", files["test.digits"], files["test.words"])
    for order in ((first, second), (second, first)):
        run("compare", *order, *pairs).fails("without case", "--lowercase or --case")
    for option, mixed in (("--lowercase", False), ("--case", True)):
        done = run("compare", first, second, *pairs, option)
        assert done.code == 0, done.err
        assert ("case:mixed" in done.out) == mixed
    assert "case:mixed" in run("evaluate", first, *pairs, "--case").out
    assert "case:mixed" not in run("evaluate", first, *pairs).out


def test_what_one_of_two_cannot_read_is_told_first(run: Run, translators: dict[str, Path], tmp_path: Path) -> None:
    table = tmp_path / "pairs.tsv"
    table.write_text("12\ttwelve\n" * 9 + "1 " * 300 + "\tone\n", encoding="utf-8")
    words = ("compare", translators["gru"], translators["transformer"], "--data", table, "--case")
    run(*words).fails("the second run: ", "pairs.tsv:10", "reads up to 64")
    table.write_text("12\ttwelve\n13\tthirteen\n", encoding="utf-8")
    run(*words).fails("at least 6 pairs", "got 2")


def test_a_file_that_cannot_be_written_is_told_first(run: Run, spoken: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    run("evaluate", spoken, "--outputs", missing / "texts.txt").fails("--outputs", "there is no folder")
    run("evaluate", spoken, "--outputs", tmp_path).fails("is a folder")
    run("convert", spoken, "42", "--picture", missing / "look.svg").fails("--picture", "there is no folder")


def test_a_table_is_read_as_the_training_table_was(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    """A file name without an ending that tells: the kind was said in training, and holds for what is judged."""
    source = PairSource(path=str(files["train.tsv"]), kind="table")
    train_pairs("convert", source, model="gru", steps=4, out=tmp_path / "run", settings=SETTINGS)
    held = tmp_path / "held.txt"
    held.write_bytes(files["test.tsv"].read_bytes())
    done = run("evaluate", tmp_path / "run", "--data", held)
    assert done.code == 0, done.err


def test_one_beam_is_greedy(
    run: Run, spoken: Path, translators: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (spoken, translators["gru"], translators["transformer"]):
        model = load_pairs(path)
        sources = [str(number) for number in range(40)]
        greedy = model.write(sources, strategy="greedy")
        one = model.write(sources, beams=1)
        assert [text.tokens for (text,) in one] == [text.tokens for (text,) in greedy]
    monkeypatch.setattr("textwright.cli.watching.QUIET", 0.0)
    greedy = run("evaluate", spoken, "--beams", "1")
    assert "greedy" in greedy.out
    whole = re.search(r"([\d,]+) pairs, greedy", greedy.out)
    assert whole is not None and f"writing, sources: {whole[1]} of {whole[1]}" in greedy.err
    assert "beam 1, length penalty 0.5" in run("evaluate", spoken, "--beams", "1", "--length-penalty", "0.5").out


def test_no_beams_are_no_default(spoken: Path) -> None:
    with pytest.raises(ConfigError, match="beams"):
        evaluate_pairs(load_pairs(spoken), raw_pairs(spoken / "data" / "valid")[:3], beams=0)


def test_runs_whose_log_probabilities_are_added(run: Run, spoken: Path, translators: dict[str, Path]) -> None:
    """A run and itself want the same tokens, and are surer of them."""
    asked = ("evaluate", spoken, "--beams", "1", "--json")
    alone, itself = (json.loads(run(*asked, *more).out) for more in ((), ("--fuse", f"{spoken}=1")))
    assert itself["scores"] == alone["scores"]
    other = translators["gru"]
    asked = ("translate", other, "42", "--strategy", "greedy", "--json")
    (one,), (both,) = (json.loads(run(*asked, *more).out)["outputs"] for more in ((), ("--fuse", f"{other}=0.5")))
    assert both["tokens"] == one["tokens"]
    assert both["logprob"] != pytest.approx(one["logprob"])
    run("evaluate", spoken, "--fuse", f"{translators['transformer']}=1").fails("the same tokenizers")


def test_a_vote_is_a_number(run: Run, spoken: Path) -> None:
    run("evaluate", spoken, "--with", f"{spoken}=nan").fails("--with expects NAME=NUMBER", "nan")
    run("evaluate", spoken, "--with", f"{spoken}=inf").fails("a vote is a number", "inf")
    run("convert", spoken, "42", "--fuse", f"{spoken}=inf").fails("a vote is a number", "inf")
    with pytest.raises(ConfigError, match="guidance is a number, got nan"):
        load_pairs(spoken).guided(float("nan"), "17")
