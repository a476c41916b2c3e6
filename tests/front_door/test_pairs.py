"""Tasks with a source at the command line: an exact task from files to a stated accuracy, and every verb."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from door import Run

SMALL = {
    "transformer": ("--set", "model.width=32", "--set", "model.inner=64", "--set", "model.layers=1"),
    "gru": ("--set", "model.width=32"),
}


def test_an_exact_task_is_learned(run: Run, spoken: Path, files: dict[str, Path]) -> None:
    """Numbers it never saw: at least 95 of 100 are spelled out without a mistake."""
    result = run("evaluate", spoken, "--pairs", files["test.digits"], files["test.words"], "--json")
    assert result.code == 0, result.err
    (exact,) = [score for score in json.loads(result.out)["scores"] if score["name"] == "exact"]
    assert exact["value"] >= 95
    assert exact["interval"][0] <= exact["value"] <= exact["interval"][1]
    assert run("convert", spoken, "7321").out == "seven thousand three hundred twenty one\n"


@pytest.mark.parametrize("model", SMALL)
def test_train_translate_evaluate(run: Run, files: dict[str, Path], tmp_path: Path, model: str) -> None:
    out = tmp_path / "run"
    pairs = ("--pairs", files["train.digits"], files["train.words"])
    others = ("--test-pairs", files["test.digits"], files["test.words"])
    words = ("train", "--task", "translate", *pairs, *others, "--model", model, "--steps", "6", "--out", out)
    done = run(*words, *SMALL[model], "--set", "training.evaluations=2")
    assert done.code == 0, done.err
    for part in ("pairs: 3,", "first pair: ", "[</s>]", "BLEU", "chrF", "TER", "copying the source", "report.html"):
        assert part in done.out, part
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Where the model looked" in page
    assert "nrefs:1|case:mixed" in page
    checks = run("selftest", out)
    assert checks.code == 0, checks.out
    if model == "transformer":  # a recurrent encoder reads texts of any length
        run("translate", out, "1 " * 500).fails("reads up to 64", "Nothing was written")
    lines = run("translate", out, "--input", files["test.digits"], "--scores")
    assert lines.code == 0, lines.err
    assert len(lines.out.splitlines()) == 200
    assert all(re.fullmatch(r"[^\t]*\t-\d+\.\d+", line) for line in lines.out.splitlines())


def test_the_same_command_goes_on(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    words = ["train", files["train.tsv"], "--task", "convert", "--out", tmp_path / "run", *SMALL["gru"]]
    assert run(*words, "--steps", "4").code == 0
    again = run(*words, "--steps", "8")
    assert again.code == 0, again.err
    assert "Going on after step 4" in again.out
    other = run(*words[:3], "translate", *words[4:], "--steps", "8")
    other.fails("task", "another --out")


def test_n_best_scores_and_alignments(run: Run, spoken: Path) -> None:
    result = run("convert", spoken, "42", "--n-best", "3", "--alignments", "--json")
    record = json.loads(result.out)
    outputs = record["outputs"]
    assert record["source"] == "42"
    assert outputs[0]["text"] == "forty two"
    assert [one["score"] for one in outputs] == sorted((one["score"] for one in outputs), reverse=True)
    seen = outputs[0]["alignment"]
    assert seen["source"] == ["4", "2", "</s>"]
    assert seen["target"] == ["forty", "two", "</s>"]
    assert all(sum(row) == pytest.approx(1, abs=2e-3) for row in seen["weights"])
    plain = run("convert", spoken, "42", "--alignments").out
    assert re.fullmatch(r"forty two\t\d-0 \d-1 \d-2\n", plain)


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_alignments_as_a_picture(run: Run, spoken: Path, tmp_path: Path, suffix: str) -> None:
    picture = tmp_path / f"look.{suffix}"
    assert run("convert", spoken, "42", "--picture", picture).code == 0
    head = picture.read_bytes()[:400]
    assert head.startswith(b"\x89PNG") if suffix == "png" else b"<svg" in picture.read_bytes()


def test_blank_lines_stay_beside_each_other(run: Run, spoken: Path, tmp_path: Path) -> None:
    source = tmp_path / "lines.txt"
    source.write_text("12\n\n  \n30\n", encoding="utf-8")
    result = run("convert", spoken, "--input", source)
    first, last = (run("convert", spoken, number).out for number in ("12", "30"))
    assert result.out == f"{first}\n\n{last}"
    assert "2 empty source(s)" in result.err
    assert "lines.txt:2" in result.err


def test_samples_repeat_with_their_seed(run: Run, spoken: Path) -> None:
    words = ("convert", spoken, "99", "--strategy", "sample", "--temperature", "2", "--n-best", "3", "--json")
    first, second = (json.loads(run(*words, "--seed", "5").out)["outputs"] for _ in range(2))
    assert first == second
    assert [one["seed"] for one in first] == [5, 6, 7]


def test_compare_two_runs(run: Run, spoken: Path, files: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert (
        run("train", files["train.tsv"], "--task", "convert", "--steps", "4", "--out", other, *SMALL["gru"]).code == 0
    )
    result = run("compare", spoken, other, "--pairs", files["test.digits"], files["test.words"])
    assert result.code == 0, result.err
    assert "exact" in result.out
    found = json.loads(run("compare", spoken, other, "--data", files["test.tsv"], "--json").out)
    assert found[0]["difference"] < -50
    assert found[0]["p"] < 0.01


def test_chat_and_answer(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    chats = tmp_path / "chats.jsonl"
    chats.write_text(
        "".join(json.dumps({"turns": ["Hello!", "Hi.", "Bye."]}) + "\n" for _ in range(30)), encoding="utf-8"
    )
    done = run(
        *("train", chats, "--task", "chat", "--valid", chats, "--test", chats, "--steps", "4"),
        *("--out", tmp_path / "chat", *SMALL["gru"]),
    )
    assert done.code == 0, done.err
    assert "60 to validate, 60 to test" in done.out
    assert "distinct-1" in done.out
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello!\nHow are you?\n\n"))
    talk = run("chat", tmp_path / "chat", "--seed", "1")
    assert talk.code == 0, talk.err
    assert len(talk.out.splitlines()) == 2
    questions = tmp_path / "q.jsonl"
    row = {"question": "Who?", "context": "Ann came.", "answer": "Ann"}
    questions.write_text("".join(json.dumps(row) + "\n" for _ in range(30)), encoding="utf-8")
    done = run(
        "train",
        questions,
        "--task",
        "answer",
        "--valid",
        questions,
        "--steps",
        "4",
        "--out",
        tmp_path / "qa",
        *SMALL["gru"],
    )
    assert done.code == 0, done.err
    told = run("answer", tmp_path / "qa", "--question", "Who?", "--context", "Ann came.")
    assert told.code == 0, told.err
    assert len(run("answer", tmp_path / "qa", "--input", questions).out.splitlines()) == 30


# Bad input ------------------------------------------------------------------------------------------------------------


def test_files_of_different_lengths(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    short = tmp_path / "short.words"
    short.write_text("".join(files["train.words"].read_text().splitlines(keepends=True)[:-3]), encoding="utf-8")
    result = run("train", "--task", "translate", "--pairs", files["train.digits"], short, "--out", tmp_path / "run")
    assert result.code == 1
    assert "Traceback" not in result.err
    for part in ("holds 3,800 lines", "3,797", "near line", "'four thousand"):  # both counts, and the place
        assert part in result.err
    assert not (tmp_path / "run" / "config.json").exists()


def test_wrong_uses_are_refused_in_a_line(run: Run, spoken: Path, files: dict[str, Path], tmp_path: Path) -> None:
    digits, words = files["train.digits"], files["train.words"]
    train = ("train", "--out", tmp_path / "run", "--task", "translate")
    run(*train).fails("--pairs")
    run(*train, "--pairs", digits, tmp_path / "none").fails("none")
    run(*train, files["train.tsv"], "--pairs", digits, words).fails("not both")
    run("train", "--out", tmp_path / "run", "--pairs", digits, words).fails("--task translate")
    run(*train[:-1], "transalte", "--pairs", digits, words).fails("Did you mean 'translate'")
    run("translate", spoken, "7").fails("textwright convert")
    run("generate", spoken).fails("textwright convert")
    run("convert", spoken, "").fails("empty")
    run("convert", spoken, "7", "--input", digits).fails("not both")
    run("convert", spoken, "7", "--beams", "2", "--n-best", "3").fails("--beams 3")
    run("convert", spoken, "7", "--seed", "3").fails("draws nothing", "seed")
    run("convert", spoken, "7", "--strategy", "greedy", "--beams", "2").fails("--strategy beam")
    run("convert", spoken, "7", "--picture", tmp_path / "look.gif").fails(".png")
    run("evaluate", spoken, "--stride", "3").fails("--stride")
    uneven = run("evaluate", spoken, "--pairs", digits, files["test.words"])
    assert uneven.code == 1
    assert "holds 3,800 lines" in uneven.err
    run("compare", spoken, tmp_path / "none").fails("does not exist")
    assert not (tmp_path / "run" / "config.json").exists()


def test_unknown_characters_are_told(run: Run, spoken: Path) -> None:
    result = run("convert", spoken, "☃☃")
    assert result.code == 0
    assert "nothing but characters or words never seen" in result.err
    assert "'☃'" in result.err


def test_mixed_up_sides(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    pairs = ("--pairs", files["train.digits"], files["train.words"])
    swapped = ("--valid-pairs", files["test.words"], files["test.digits"])
    run("train", "--task", "translate", *pairs, *swapped, "--out", tmp_path / "run").fails(
        "look swapped", "source first"
    )


def test_sources_of_the_wrong_side_are_told(run: Run, spoken: Path, files: dict[str, Path]) -> None:
    result = run("convert", spoken, "--input", files["test.words"])
    assert "are the sides mixed up?" in result.err
    assert "are the sides mixed up?" not in run("convert", spoken, "--input", files["test.digits"]).err
