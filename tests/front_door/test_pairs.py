"""Tasks with a source at the command line: an exact task from files to a stated accuracy, and every verb."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from door import Run

from textwright.api import train_pairs
from textwright.cli.evaluate import read_test
from textwright.errors import ConfigError
from textwright.fit import open_job
from textwright.opening import load_pairs
from textwright.pair_job import PairJob
from textwright.run import read_manifest
from textwright.text.bitext import raw_pairs
from textwright.text.pairs import PairSource
from textwright.training.state import newest, read_progress

SMALL = {
    "transformer": ("--set", "model.width=32", "--set", "model.inner=64", "--set", "model.layers=1"),
    "gru": ("--set", "model.width=32"),
}


@pytest.fixture(scope="module")
def spelled_in_pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small translator over pieces of bytes."""
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "train.tsv").write_text("".join(f"word {n}\tWort {n}\n" for n in range(300)), encoding="utf-8")
    source = PairSource(path=str(folder / "train.tsv"))
    settings = {"model.width": 32, "training.evaluations": 1}
    train_pairs("translate", source, model="gru", tokenizer="bpe", steps=4, out=folder / "run", settings=settings)
    return folder / "run"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]) -> Path:
    """A run of the task that has hardly begun to learn it."""
    out, source = tmp_path_factory.mktemp("runs") / "other", PairSource(path=str(files["train.tsv"]))
    settings = {"model.width": 32, "training.evaluations": 1}
    train_pairs("convert", source, model="gru", steps=40, out=out, settings=settings)
    return out


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
    sources = tmp_path / "sources"
    sources.write_text("42\n\n7\n", encoding="utf-8")
    assert run("convert", spoken, "--input", sources, "--picture", picture).code == 0
    numbered = {file.name for file in tmp_path.glob(f"look-*.{suffix}")}
    assert numbered == {f"look-1.{suffix}", f"look-3.{suffix}"}  # as the lines are


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


def test_compare_two_runs(run: Run, spoken: Path, other: Path, files: dict[str, Path], tmp_path: Path) -> None:
    result = run("compare", spoken, other, "--pairs", files["test.digits"], files["test.words"])
    assert result.code == 0, result.err
    assert "exact" in result.out
    found = json.loads(run("compare", spoken, other, "--data", files["test.tsv"], "--json").out)
    assert found[0]["difference"] < -50
    assert found[0]["p"] < 0.01
    numbered = tmp_path / "numbered.tsv"
    rows = files["test.tsv"].read_text(encoding="utf-8").splitlines()
    numbered.write_text("".join(f"{n}\t{row}\n" for n, row in enumerate(rows)), encoding="utf-8")
    again = run("compare", spoken, other, "--data", numbered, "--fields", "2", "3", "--json")
    assert json.loads(again.out) == found


def test_two_runs_search_as_they_are_told(run: Run, spoken: Path, other: Path, files: dict[str, Path]) -> None:
    """What `compare` says of each is what `evaluate` says of it with the same options."""
    ways = [(), ("--beams", "1"), ("--beams", "3", "--length-penalty", "0")]
    data, seen = ("--data", files["test.tsv"], "--json"), []
    for way in ways:
        found = json.loads(run("compare", other, spoken, *data, *way).out)
        for side, judged in (("first", other), ("second", spoken)):
            scores = json.loads(run("evaluate", judged, *data, *way).out)["scores"]
            values = {score["name"]: score["value"] for score in scores}
            assert all(one[side]["value"] == values[one[side]["name"]] for one in found)
        seen.append([one["first"]["value"] for one in found])
    assert seen[0] != seen[1] != seen[2], "the options make no difference here"


def test_chat_and_answer(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert load_pairs(tmp_path / "qa").answer("Who?", "Ann came.").text == told.out.removesuffix("\n")
    assert len(run("answer", tmp_path / "qa", "--input", questions).out.splitlines()) == 30
    run("answer", tmp_path / "qa", "--question", " ", "--context", "Ann came.").fails("the question is empty")
    squad = tmp_path / "q.json"
    articles = [{"paragraphs": [{"context": row["context"], "qas": [{"question": "Who?", "answers": ["Ann"]}]}]}]
    squad.write_text(json.dumps({"data": articles * 30}), encoding="utf-8")
    words = ("train", squad, "--task", "answer", "--valid", squad, "--steps", "4", "--out", tmp_path / "sq")
    done = run(*words, *SMALL["gru"])
    assert done.code == 0, done.err
    run("answer", tmp_path / "sq", "--question", "Who?").fails("give the context")


def test_other_data_is_read_as_its_own_options_say(run: Run, tmp_path: Path) -> None:
    """What was said of the training pairs holds for files of their kind alone."""
    chats, table = tmp_path / "chats.jsonl", tmp_path / "talk.tsv"
    turns = {"turns": ["Hello!", "Hi.", "How are you?", "Fine."]}
    chats.write_text((json.dumps(turns) + "\n") * 30, encoding="utf-8")
    table.write_text("1\tHello!\tHi.\n" * 12, encoding="utf-8")
    out = tmp_path / "run"
    source = PairSource(path=str(chats), turns=2)
    train_pairs("chat", source, valid=source, model="gru", steps=4, out=out, settings={"model.width": 16})
    for words in (("--data", table, "--fields", "2", "3"), ("--data", chats)):
        done = run("evaluate", out, *words)
        assert done.code == 0, done.err


def test_a_table_of_another_task_has_its_own_columns(files: dict[str, Path], tmp_path: Path) -> None:
    table, out = tmp_path / "both.tsv", tmp_path / "run"
    digits, words = (files[f"test.{side}"].read_text(encoding="utf-8").splitlines() for side in ("digits", "words"))
    rows = [f"{digit}\t{word}\n" for digit, word in zip(digits, words, strict=True)]
    table.write_text("".join(rows), encoding="utf-8")
    say = PairSource(path=str(table), fields=("1", "2"), prefix="say: ")
    count = PairSource(path=str(table), fields=("2", "1"), prefix="count: ")
    settings = {"model.width": 16, "training.evaluations": 1}
    train_pairs("convert", [say, count], model="gru", tokenizer="char", steps=4, out=out, settings=settings)
    for task, wanted in (("say: ", words), ("count: ", digits)):
        found = read_test(load_pairs(out), out, str(table), None, None, task)
        assert [pair.target for pair in found] == wanted


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
    table = files["train.tsv"]
    for asked, told in (
        ((*train, "--pairs", table, "--valid", table), "and then --valid; one that holds both sides is given without"),
        (
            (*train, table, "--valid-pairs", table, "--steps", "1"),
            "and then --steps; one that holds both sides is given as",
        ),
        (("evaluate", spoken, "--pairs", table, "--json"), "given as --data FILE"),
    ):
        result = run(*asked)
        assert result.code == 2 and told in result.err
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


def test_characters_that_only_bytes_can_read_are_told(run: Run, spelled_in_pieces: Path) -> None:
    """Pieces of bytes read everything, so their vocabulary does not tell what was in no training source."""
    result = run("translate", spelled_in_pieces, "你好 ☃")
    assert result.code == 0
    assert "nothing but characters or words never seen" in result.err and "'你'" in result.err
    assert "never seen" not in run("translate", spelled_in_pieces, "word 12").err


def test_input_that_is_not_utf8(run: Run, spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = "你好世界，今天天气很好，我们一起去公园散步吧".encode("gb18030")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(written), encoding="utf-8"))
    run("convert", spoken).fails("standard input is not utf-8", "--input")
    run("convert", spoken, "7", "--min-ratio", "-1").fails("min_ratio -1")
    run("convert", spoken, "7", "--max-ratio", "inf").fails("max_ratio inf")


def test_evaluation_looks_at_its_pairs_first(run: Run, spoken: Path, files: dict[str, Path], tmp_path: Path) -> None:
    turned = run("evaluate", spoken, "--pairs", files["test.words"], files["test.digits"])
    assert "are the sides mixed up?" in turned.err
    run("evaluate", spoken, "--lowercase").fails("for translations")
    run("evaluate", spoken, "--language", "zh").fails("for translations")
    settings = ("--set", "language=zh")
    run("train", files["train.tsv"], "--task", "convert", "--out", tmp_path / "run", *settings).fails("language")
    long = tmp_path / "long.tsv"
    long.write_text("12\ttwelve\n\n" + "1 " * 300 + "\tone\n", encoding="utf-8")
    run("evaluate", small_translator(run, files, tmp_path), "--data", long).fails("long.tsv:3", "reads up to 64")
    holes = tmp_path / "holes.tsv"
    holes.write_text("12\ttwelve\n13\t\n\tfourteen\n15\tfifteen\n", encoding="utf-8")
    judged = run("evaluate", spoken, "--data", holes)
    assert judged.code == 0
    assert "left out 2 of 4 pairs that are empty on a side" in judged.err and "holes.tsv:2" in judged.err


def small_translator(run: Run, files: dict[str, Path], folder: Path) -> Path:
    out = folder / "translator"
    pairs = ("--pairs", files["train.digits"], files["train.words"])
    done = run("train", "--task", "translate", *pairs, "--steps", "4", "--out", out, *SMALL["transformer"])
    assert done.code == 0, done.err
    return out


def test_pairs_that_are_held_back_and_left_out_are_told(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    valid = tmp_path / "valid.tsv"
    valid.write_text("12\ttwelve\n13\t\n14\tfourteen\n", encoding="utf-8")
    words = ("train", files["train.tsv"], "--task", "convert", "--valid", valid, "--steps", "4")
    done = run(*words, "--out", tmp_path / "run", *SMALL["gru"])
    assert "of the pairs to validate: dropped 1 of 3 pairs" in done.out
    assert "valid.tsv:2" in done.out


def test_an_unknown_word_is_the_one_the_model_looked_at(run: Run, tmp_path: Path) -> None:
    """In targets that it only knows as unknown words."""
    table, out = tmp_path / "names.tsv", tmp_path / "run"
    table.write_text("".join(f"say w{number}\tsay w{number}\n" for number in range(300)), encoding="utf-8")
    words = ("train", table, "--task", "summarize", "--model", "gru", "--tokenizer", "word", "--steps", "40")
    done = run(*words, "--set", "tokenizer.min_frequency=9", "--out", out, *SMALL["gru"])
    assert done.code == 0, done.err
    asked = ("summarize", out, "say zebra", "--alignments", "--json")
    plain, replaced = (json.loads(run(*asked, *more).out)["outputs"][0] for more in ((), ("--replace-unknown",)))
    seen = replaced["alignment"]
    assert seen["source"] == ["say", "zebra", "</s>"]
    unknown = plain["text"].split()[-1]
    assert unknown not in ("say", "zebra") and unknown in seen["target"]
    assert replaced["tokens"] == plain["tokens"]
    best = [seen["source"][max((0, 1), key=row.__getitem__)] for row in seen["weights"]]
    expected = [one if told == unknown else told for told, one in zip(seen["target"], best, strict=True)]
    assert replaced["text"].split() == expected[:-1]  # the end is not shown


def test_askedin_other_pieces_are_trained_on(run: Run, spelled_in_pieces: Path, tmp_path: Path) -> None:
    table = spelled_in_pieces.parent / "train.tsv"
    words = ("train", table, "--task", "translate", "--model", "gru", "--tokenizer", "bpe", "--steps", "4")
    done = run(*words, "--set", "bpe_dropout=0.5", "--out", tmp_path / "run", *SMALL["gru"])
    assert done.code == 0, done.err
    usual, finer = (read_progress(newest(out / "training")) for out in (spelled_in_pieces, tmp_path / "run"))
    assert usual.tokens == usual.seen
    assert finer.tokens > 1.2 * finer.seen


def test_sources_that_the_model_cannot_read_are_told_before_training(
    run: Run, files: dict[str, Path], tmp_path: Path
) -> None:
    turned = ("--pairs", files["train.words"], files["train.digits"])
    words = ("train", "--task", "convert", *turned, "--set", "model.source_window=4", "--out", tmp_path / "run")
    run(*words, "--steps", "4").fails("the longest source has", "model.source_window is 4", "--set cut=")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_target_whose_end_carries_no_loss_is_an_error(spoken: Path) -> None:
    job = open_job(read_manifest(spoken).config, spoken)
    assert isinstance(job, PairJob)
    assert job.audit().endswith("[</s>]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("textwright.pair_job.AUDITED", 3)  # of a long target the end is told, too
        assert re.search(r"-> \[.{2} … \[</s>\]$", job.audit())
    job.generation = job.generation.model_copy(update={"end": job.data.tokenizer.size + 1})
    with pytest.raises(ConfigError, match="never learn to stop"):
        job.audit()


# Several tasks, and what stands in front of sources -------------------------------------------------------------------


@pytest.fixture(scope="module")
def twofold(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]) -> Path:
    """One model that was shown digits to words and words to digits."""
    out, digits, words = tmp_path_factory.mktemp("runs") / "twofold", files["train.digits"], files["train.words"]
    there = PairSource(path=str(digits), target=str(words), prefix="say: ")
    back = PairSource(path=str(words), target=str(digits), prefix="count: ")
    settings = {"model.width": 32, "training.evaluations": 1}
    train_pairs("answer", [there, back], model="gru", tokenizer="char", steps=4, out=out, settings=settings)
    return out


def test_a_model_of_several_tasks_is_told_which_one(run: Run, twofold: Path, files: dict[str, Path]) -> None:
    pairs = ("--pairs", files["test.words"], files["test.digits"])
    run("evaluate", twofold, *pairs).fails("several tasks", "--prefix", "'count: '", "'say: '")
    run("evaluate", twofold, *pairs, "--prefix", "sing: ").fails("'sing: '", "'count: '")
    run("evaluate", twofold, "--prefix", "count: ").fails("--data or --pairs")
    done = run("evaluate", twofold, *pairs, "--prefix", "count: ")
    assert done.code == 0, done.err
    assert "mixed up" not in done.err
    asked = ("answer", twofold, "--question", "twelve")
    run(*asked).fails("several tasks")
    assert run(*asked, "--prefix", "count: ").code == 0
    begun = load_pairs(twofold).answer("twelve", task_prefix="count: ", prefix="12").text
    assert begun.startswith("12")  # the prefix of `write`: what the text begins with


def test_a_dialogue_may_be_one_of_several_tasks(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = []
    for name in ("talk", "ask"):
        rows = [json.dumps({"turns": [f"{name} {n}", f"yes {n}", f"why {n}?"]}) + "\n" for n in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
        sources.append(PairSource(path=str(tmp_path / f"{name}.jsonl"), turns=2, prefix=f"{name}: "))
    settings = {"model.width": 16, "training.evaluations": 1}
    train_pairs("chat", sources, model="gru", steps=4, out=tmp_path / "run", settings=settings)
    run("chat", tmp_path / "run").fails("several tasks", "--prefix", "'ask: '", "'talk: '")
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello!\nHow are you?\n\n"))
    twice = run("chat", tmp_path / "run", "--set", "task_prefix=talk", "--prefix", "talk: ")
    twice.fails("this has an option of its own, --prefix")
    done = run("chat", tmp_path / "run", "--seed", "1", "--prefix", "talk: ")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 2
    model = load_pairs(tmp_path / "run")
    replies = [model.reply(["Hello!"], task_prefix=f"{name}: ", seed=3) for name in ("talk", "ask")]
    for reply, name in zip(replies, ("talk", "ask"), strict=True):
        assert reply == model.write([f"{name}: Hello!"], preset="chat", seed=3)[0][0]
    assert replies[0].logprob != replies[1].logprob


def test_a_context_may_be_left_out_where_some_questions_had_none(tmp_path: Path) -> None:
    squad, plain = tmp_path / "q.json", tmp_path / "plain.tsv"
    asked = [{"question": f"Who came {n}?", "answers": ["Ann"]} for n in range(40)]
    squad.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Ann came.", "qas": asked}]}]}), encoding="utf-8")
    plain.write_text("".join(f"Who went {n}?\tBob\n" for n in range(40)), encoding="utf-8")
    sources = [PairSource(path=str(squad)), PairSource(path=str(plain))]
    settings = {"model.width": 16, "training.evaluations": 1}
    for known, refused in ((sources, False), (sources[::-1], False), (sources[:1], True)):
        out = tmp_path / f"run{len(known)}{known[0].path[-3:]}"
        train_pairs("answer", known, model="gru", steps=4, out=out, settings=settings)
        if refused:
            with pytest.raises(ConfigError, match="give the context"):
                load_pairs(out).answer("Who came 7?")
        else:
            assert load_pairs(out).answer("Who came 7?").finish_reason


def test_models_of_other_tasks_do_not_vote(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    """They would read the same ids, which one of them has never seen."""
    outs = {}
    for prefix in ("say: ", "tell: "):
        outs[prefix] = tmp_path / prefix.strip(": ")
        words = ("train", files["train.tsv"], "--task", "convert", "--prefix", prefix, "--tokenizer", "char")
        assert run(*words, "--steps", "4", "--out", outs[prefix], *SMALL["gru"]).code == 0
    first, second = map(load_pairs, outs.values())
    second.source_tokenizer, second.tokenizer = first.source_tokenizer, first.tokenizer
    with pytest.raises(ConfigError, match=r"put the same in front of a source.*'say: ' and 'tell: '"):
        first.together([(second, 0.5)])


def test_validation_pairs_are_composed_as_the_training_pairs(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("train", files["train.tsv"], "--task", "convert", "--valid", files["test.tsv"], "--prefix", "say: ")
    done = run(*words, "--steps", "4", "--out", out, *SMALL["gru"])
    assert done.code == 0, done.err
    assert "first pair: s|a|y|:| |" in done.out  # the prefix does not decide what the sources are made of
    assert all(pair.source.startswith("say: ") for pair in raw_pairs(out / "data" / "valid"))
    run("train", "--prefix", "say: ").fails("--prefix", "--task translate")


def test_a_pointer_may_write_what_only_sources_hold(run: Run, tmp_path: Path) -> None:
    """In training no target holds a digit; a pointer copies one all the same, and a model without may not write it."""
    table = tmp_path / "names.tsv"
    names = ["".join(chr(97 + number // 26**place % 26) for place in range(3)) for number in range(300)]
    rows = [f"{number} {name}\t{name}\n" for number, name in enumerate(names)]
    table.write_text("".join(rows), encoding="utf-8")
    unseen = {}
    for copying in ("true", "false"):
        out = tmp_path / copying
        words = ("train", table, "--task", "summarize", "--model", "gru", "--tokenizer", "char", "--steps", "4")
        done = run(*words, "--set", f"model.copying={copying}", "--set", "model.width=32", "--out", out)
        assert done.code == 0, done.err
        model = load_pairs(out)
        digits = set(model.tokenizer.encode("0123456789"))
        unseen[copying] = digits & set(model.generation.unseen)
    assert len(unseen["false"]) == 10
    assert not unseen["true"]


def test_a_refused_start_can_be_mended_in_its_folder(run: Run, files: dict[str, Path], tmp_path: Path) -> None:
    """What was prepared is taken up again, unless the new wish needs other vocabularies."""
    words = ("train", files["train.tsv"], "--task", "convert", "--steps", "4", "--out", tmp_path / "run", *SMALL["gru"])
    run(*words, "--set", "model.vocab=3").fails("model.vocab")
    assert (tmp_path / "run" / "data" / "characters.txt").exists()
    done = run(*words, "--model", "gru", "--set", "model.copying=true")
    assert done.code == 0, done.err
    assert load_pairs(tmp_path / "run").source_tokenizer.same(load_pairs(tmp_path / "run").tokenizer)


def test_sources_of_the_wrong_side_are_told(run: Run, spoken: Path, files: dict[str, Path]) -> None:
    result = run("convert", spoken, "--input", files["test.words"])
    assert "are the sides mixed up?" in result.err
    assert "are the sides mixed up?" not in run("convert", spoken, "--input", files["test.digits"]).err
