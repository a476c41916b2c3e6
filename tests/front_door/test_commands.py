"""What the commands do when all is well."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
from door import POEM, TINY, Run
from safetensors.torch import load_file

import textwright
from textwright.fit import open_job
from textwright.run import read_manifest
from textwright.run_model import load_model
from textwright.text.corpus import counted, open_prepared
from textwright.training.state import newest, read_progress


def test_train_prints_a_plan_progress_a_comparison_and_a_verdict(run: Run, text: Path, tmp_path: Path) -> None:
    result = run("train", text, "--tokenizer", "char", "--steps", "30", "--out", tmp_path / "run", *TINY)
    assert result.code == 0, result.err
    for part in ("parameters", "tokens/s", "Before training", "After training", "bits a byte", "report.html"):
        assert part in result.out
    assert re.search(r"Still learning|Fitted|Over-fitted", result.out)
    for file in ("model.safetensors", "config.json", "tokenizer.json", "generation.json", "report.html"):
        assert (tmp_path / "run" / file).is_file()


@pytest.mark.parametrize("family", ["rnn", "gru", "lstm", "transformer"])
def test_every_family_trains_evaluates_and_writes(run: Run, text: Path, tmp_path: Path, family: str) -> None:
    out = tmp_path / family
    done = run("train", text, "--model", family, "--tokenizer", "byte", "--epochs", "0.5", "--out", out, *TINY)
    assert done.code == 0, done.err
    assert run("evaluate", out).code == 0
    assert len(run("generate", out, "--max-new-tokens", "5", "--seed", "1").out) > 1
    checks = run("selftest", out)
    assert checks.code == 0, checks.out
    assert checks.out.count("ok  ") == 15


def test_evaluate_json_is_one_document_with_all_figures(run: Run, trained: dict[str, Path], text: Path) -> None:
    for family, context in (("transformer", "window 16, stride 8"), ("lstm", "carried state")):
        result = run("evaluate", trained[family], "--data", text, "--json")
        assert result.err == ""
        panel = json.loads(result.out)
        assert panel["tokens"] == len(POEM) * 60 + 1
        assert panel["token_perplexity"] == pytest.approx(math.exp(panel["loss"]))
        assert panel["context"].startswith(context)
        assert panel["bits_per_byte"] == panel["bits_per_character"]
        assert panel["word_perplexity"] > panel["token_perplexity"]


def test_evaluate_with_a_continuous_cache(run: Run, trained: dict[str, Path], text: Path) -> None:
    """The poem says the same again and again: a model that learned little gains by looking things up."""
    words = ("evaluate", trained["lstm"], "--data", text, "--json")
    plain, cached = (json.loads(run(*words, *more).out) for more in ((), ("--cache", "400")))
    assert cached["loss"] < plain["loss"]
    assert cached["tokens"] == plain["tokens"]
    assert re.search(r"continuous cache of 400 \(θ [\d.]+, λ 0\.\d+\)", cached["context"])
    assert "continuous cache of 9" in run("evaluate", trained["lstm"], "--cache", "9").out
    run("evaluate", trained["transformer"], "--cache", "9").fails("carry their state")
    run("evaluate", trained["lstm"], "--cache", "9", "--degeneration").fails("leave out --cache")


def test_what_takes_long_gives_signs_of_life(
    run: Run, trained: dict[str, Path], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = run("evaluate", trained["lstm"])
    monkeypatch.setattr("textwright.cli.watching.QUIET", 0.0)
    told = run("evaluate", trained["lstm"])
    whole = json.loads(run("evaluate", trained["lstm"], "--json").out)["tokens"]
    assert told.err.splitlines()[-1] == f"measuring, tokens: {whole:,} of {whole:,}"
    assert told.out == quiet.out and "tokens" not in quiet.err
    told = run("evaluate", trained["lstm"], "--data", text, "--dynamic")
    assert "choosing η and λ, validation tokens: " in told.err and "measuring, tokens: " in told.err


def test_evaluate_while_learning_on(run: Run, trained: dict[str, Path], text: Path) -> None:
    words = ("evaluate", trained["lstm"], "--data", text, "--json")
    plain, learned = (json.loads(run(*words, *more).out) for more in ((), ("--dynamic",)))
    assert learned["loss"] < plain["loss"] - 0.5  # the poem says the same again and again
    assert learned["tokens"] == plain["tokens"]
    assert re.search(r"dynamic evaluation in parts of 64 \(η [\d.]+, λ [\d.]+\)", learned["context"])
    assert json.loads(run(*words).out) == plain  # the run has learned nothing
    run("evaluate", trained["transformer"], "--dynamic").fails("carry their state")
    run("evaluate", trained["lstm"], "--dynamic", "--cache", "9").fails("--cache", "--dynamic", "one of them")
    run("evaluate", trained["lstm"], "--dynamic", "--degeneration").fails("leave out --dynamic")
    run("evaluate", trained["lstm"], "--dynamic", "--quantize", "int8").fails("leave out --quantize")


def test_a_softmax_from_samples_trains_the_same_model(run: Run, text: Path, tmp_path: Path) -> None:
    """It estimates the loss in training alone: what is saved, evaluated and written with has the whole softmax."""
    words = ("train", text, "--tokenizer", "char", "--model", "lstm", "--steps", "60", *TINY)
    samples = ("--set", "training.softmax_samples=8", "--set", "training.optimizer.learning_rate=0.02")
    done = run(*words, "--out", tmp_path / "a", *samples)
    assert done.code == 0, done.err
    trained = json.loads(run("evaluate", tmp_path / "a", "--json").out)
    assert trained["loss"] < 4  # at first it is the logarithm of the vocabulary, 5.7, most of whose bytes never occur
    assert run("generate", tmp_path / "a", "--max-new-tokens", "3").code == 0
    run(*words, "--out", tmp_path / "b", "--set", "training.softmax_samples=9000").fails("less than the vocabulary")
    assert not (tmp_path / "b" / "config.json").exists()
    smooth = ("--set", "training.label_smoothing=0.1")
    run(*words, "--out", tmp_path / "c", *samples, *smooth).fails("label_smoothing", "softmax_samples")


@pytest.mark.parametrize("family", ["transformer", "lstm"])
def test_an_embedding_begins_from_the_text(run: Run, text: Path, tmp_path: Path, family: str) -> None:
    words = ("train", text, "--tokenizer", "byte", "--model", family, "--steps", "2", *TINY)
    words += ("--set", "training.optimizer.learning_rate=1e-6")  # it stays where it begins
    begun = ("--set", "training.embedding=cooccurrence")
    first, again = (run(*words, "--out", tmp_path / "a", *begun) for _ in range(2))
    assert (first.code, again.code) == (0, 0)
    assert "Preparing the new model" in first.out + first.err
    assert "Preparing the new model" not in again.out + again.err
    assert run(*words, "--out", tmp_path / "b").code == 0
    one, other = (load_file(tmp_path / name / "model.safetensors")["embed.weight"] for name in "ab")
    there = counted(open_prepared(tmp_path / "a" / "data").train, len(one)) > 0
    assert bool(((one - other).abs().amax(1)[there] > 0.01).all())
    torch.testing.assert_close(one[~there], other[~there], atol=1e-4, rtol=0)
    wide = ("--set", "model.width=512")
    run(*words, "--out", tmp_path / "c", *begun, *wide).fails("training.embedding", "1024", "leave it out")
    assert not (tmp_path / "c" / "config.json").exists()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="tells files by /proc")
def test_data_is_on_the_disk_before_it_is_said_to_be_there(
    run: Run, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a marker without its data would be trained on."""
    written: list[Path] = []
    fsync = os.fsync

    def note(number: int) -> None:
        written.append(Path(f"/proc/self/fd/{number}").readlink())
        fsync(number)

    monkeypatch.setattr(os, "fsync", note)
    out = tmp_path / "out"
    assert run("train", text, "--model", "gru", "--steps", "1", "--out", out, *TINY).code == 0
    marker = next(place for place, path in enumerate(written) if path.name.startswith(".request.json"))
    before = set(written[:marker])
    data = {path for path in (out / "data").iterdir() if path.name != "request.json"}
    assert data and data <= before and out / "data" in before
    assert out / "data" in written[marker:]  # and the marker's own name


def test_what_is_kept_is_calibrated(run: Run, text: Path, tmp_path: Path) -> None:
    words = ("train", text, "--tokenizer", "byte", "--steps", "20", *TINY)
    asked = ("--set", "training.calibrate=true")
    results = (
        run(*words, "--model", "gru", "--out", tmp_path / "plain"),
        run(*words, "--model", "gru", "--out", tmp_path / "gru", *asked),
    )
    assert [result.code for result in results] == [0, 0]
    told = re.search(r"are calibrated: .* the loss was (\S+) and became (\S+)\.$", results[1].out, re.MULTILINE)
    assert told is not None and "calibrated" not in results[0].out
    assert float(told[2]) < float(told[1])
    last = []
    for name in ("plain", "gru"):
        state = read_progress(newest(tmp_path / name / "training"))
        last.append(state.evaluations[-1])
        assert state.evaluations[0].calibration is None  # nothing was learned yet
        assert state.best_loss == min(look.valid_loss for look in state.evaluations)
        config = read_manifest(tmp_path / name).config
        model = load_model(tmp_path / name, config, torch.device("cpu"))
        look = open_job(config, tmp_path / name).validate(model, trained=True)
        assert look.loss == pytest.approx(state.best_loss, rel=1e-6)  # what is kept is what was looked at
    assert last[1].valid_loss < last[0].valid_loss
    assert last[0].calibration is None and last[1].calibration is not None
    more = ("finetune", tmp_path / "gru", text, "--steps", "2", *asked, "--out", tmp_path / "more")
    assert run(*more).code == 0
    begun = read_progress(newest(tmp_path / "more" / "training")).evaluations[0]
    assert begun.calibration is not None  # the base is compared with what follows, on one footing
    again = run(*words, "--model", "gru", "--out", tmp_path / "gru", *asked)  # complete: nothing is fitted once more
    assert told[0] in again.out
    run(*words, "--model", "transformer", "--out", tmp_path / "t", *asked).fails("training.calibrate", "recurrent")
    assert not (tmp_path / "t" / "config.json").exists()


def test_generate_json_is_one_document(run: Run, trained: dict[str, Path]) -> None:
    words = ("generate", trained["lstm"], "--prompt", "The ", "--n", "3", "--max-new-tokens", "9", "--json")
    result = run(*words, "--seed", "7")
    outputs = json.loads(result.out)["outputs"]
    assert len(outputs) == 3
    for output in outputs:
        assert len(output["tokens"]) <= 9
        assert output["finish_reason"] in ("length", "end")
        assert output["logprob"] < 0
        assert isinstance(output["text"], str)
    assert json.loads(run(*words, "--seed", "7").out)["outputs"] == outputs
    alone = run("generate", trained["lstm"], "--prompt", "The ", "--max-new-tokens", "9", "--json", "--seed", "8")
    (own,) = json.loads(alone.out)["outputs"]
    assert own["tokens"] == outputs[1]["tokens"]  # the second of three has the next seed
    # A batch of another size may round the last digit otherwise.
    assert own.pop("logprobs") == pytest.approx(outputs[1].pop("logprobs"), abs=1e-5)
    assert own.pop("logprob") == pytest.approx(outputs[1].pop("logprob"), abs=1e-4)
    assert own == outputs[1]


def test_a_stream_is_the_whole_text(run: Run, trained: dict[str, Path]) -> None:
    words = ("generate", trained["transformer"], "--prompt", "Who", "--seed", "3", "--max-new-tokens", "60")
    assert run(*words, "--stream").out == run(*words).out


def test_greedy_is_always_the_same_and_beams_are_ranked(run: Run, trained: dict[str, Path]) -> None:
    words = ("generate", trained["transformer"], "--prompt", "The", "--max-new-tokens", "8", "--json")
    assert run(*words, "--strategy", "greedy").out == run(*words, "--strategy", "greedy").out
    beams = json.loads(run(*words, "--strategy", "beam", "--n", "3").out)["outputs"]
    ranked = [output["logprob"] / len(output["tokens"]) for output in beams]
    assert ranked == sorted(ranked, reverse=True)


def test_stop_strings_are_cut_off(run: Run, trained: dict[str, Path]) -> None:
    words = ("generate", trained["transformer"], "--strategy", "greedy", "--max-new-tokens", "40", "--json")
    (plain,) = json.loads(run(*words).out)["outputs"]
    stop = plain["text"][5:8]
    (stopped,) = json.loads(run(*words, "--stop", stop).out)["outputs"]
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == plain["text"][: plain["text"].index(stop)]


def test_an_unprompted_text_begins_without_its_start(run: Run, trained: dict[str, Path]) -> None:
    (output,) = json.loads(run("generate", trained["lstm"], "--json", "--seed", "1").out)["outputs"]
    assert len(output["tokens"]) >= len(output["text"]) >= 1


def test_a_drawn_seed_is_told_and_repeats_the_text(run: Run, trained: dict[str, Path]) -> None:
    first = run("generate", trained["lstm"], "--max-new-tokens", "20")
    seed = re.search(r"--seed (\d+)", first.err).group(1)
    assert run("generate", trained["lstm"], "--max-new-tokens", "20", "--seed", seed).out == first.out


def test_the_same_command_goes_on_and_a_larger_budget_too(run: Run, text: Path, tmp_path: Path) -> None:
    words = ("train", text, "--tokenizer", "char", "--out", tmp_path / "run", *TINY, "--steps")
    assert run(*words, "6").code == 0
    assert "This run is complete" in run(*words, "6").out
    more = run(*words, "9")
    assert more.code == 0, more.err
    assert "Going on after step 6" in more.out


def test_a_run_begun_in_bfloat16_goes_on_where_there_is_none(
    run: Run, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textwright.training.hardware.has_bfloat16", lambda device: False)
    out = tmp_path / "run"
    words = ("train", text, "--tokenizer", "char", "--model", "lstm", "--out", out, *TINY, "--steps")
    run(*words, "6", "--set", "training.precision=bfloat16").fails("training.precision=float32")
    assert run(*words, "6").code == 0
    assert "goes on in float32" not in run(*words, "6").out
    manifest = json.loads((out / "config.json").read_text())
    manifest["config"]["training"]["precision"] = "bfloat16"
    (out / "config.json").write_text(json.dumps(manifest))
    more = run(*words, "9")
    assert more.code == 0, more.err
    assert "it goes on in float32" in more.out
    assert "Going on after step 6" in more.out
    assert run("evaluate", out).code == 0


def test_other_options_for_the_same_folder_are_refused(run: Run, trained: dict[str, Path], text: Path) -> None:
    run("train", text, "--tokenizer", "byte", "--steps", "5", "--out", trained["lstm"]).fails("--out", "model.family")


def test_the_python_interface(text: Path, tmp_path: Path) -> None:
    settings = {"model.width": 16, "model.layers": 1, "training.evaluations": 1}
    model = textwright.train(text, model="gru", steps=3, out=tmp_path / "run", settings=settings)
    assert textwright.load(tmp_path / "run").generate("The", seed=1) == model.generate("The", seed=1)


def test_doctor_knows_this_machine(run: Run) -> None:
    result = run("doctor")
    assert result.code == 0
    for part in ("torch", "float32 products", "GFLOP/s", "extra parquet"):
        assert part in result.out


def test_help_names_every_verb(run: Run) -> None:
    result = run("--help")
    for verb in ("train", "evaluate", "generate", "doctor", "selftest", "verify-resume"):
        assert verb in result.out


def test_the_report_is_offline_and_holds_the_samples(trained: dict[str, Path]) -> None:
    page = (trained["lstm"] / "report.html").read_text(encoding="utf-8")
    assert "src=" not in page.replace("default-src", "")
    assert "<svg" in page
    assert "learning_rate" in page


def test_chinese_without_any_option(run: Run, tmp_path: Path) -> None:
    poems = tmp_path / "poems.txt"
    poems.write_bytes(("床前明月光，疑是地上霜。举头望明月，低头思故乡。\n" * 80).encode("gb18030"))
    out = tmp_path / "run"
    result = run("train", poems, "--steps", "120", "--out", out, *TINY, "--set", "training.batch_tokens=512")
    assert result.code == 0, result.err
    (output,) = json.loads(run("generate", out, "--prompt", "床前", "--seed", "1", "--json").out)["outputs"]
    assert " " not in output["text"]
    assert "�" not in output["text"]
    assert set(output["text"]) & set("明月光疑是地上霜举头望低思故乡")


def test_a_recipe_says_when_its_data_are_others(
    run: Run, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEXTWRIGHT_DATA", str(text.parent))
    lines = ["about: a poem", "needs: poem.txt", "run:", '  source: {path: "${TEXTWRIGHT_DATA}/poem.txt"}']
    lines += ["  tokenizer: {kind: char}", "  model: {family: gru, width: 16, layers: 1}"]
    lines += ["  training: {budget: {steps: 3}, evaluations: 1}", "sha256:"]
    recipe, digest = tmp_path / "poem.yaml", hashlib.sha256(text.read_bytes()).hexdigest()
    for number, known in enumerate((digest, digest[::-1])):
        recipe.write_text("\n".join([*lines, f'  "${{TEXTWRIGHT_DATA}}/poem.txt": {known}', ""]), encoding="utf-8")
        done = run("train", recipe, "--out", tmp_path / str(number))
        assert done.code == 0, done.err
        assert ("poem.txt is not the file that the results" in done.err) == bool(number)


@pytest.mark.parametrize(("family", "rate"), [("lstm", "1"), ("transformer", "0.1")])
def test_plain_descent_has_a_rate_of_its_own(run: Run, text: Path, tmp_path: Path, family: str, rate: str) -> None:
    """And not Adam's, with which it would hardly move."""
    words = ("train", text, "--model", family, "--steps", "2", "--set", "training.optimizer.kind=sgd")
    done = run(*words, "--out", tmp_path / "run", "--set", "model.width=32", "--set", "training.evaluations=1")
    assert done.code == 0, done.err
    assert f", sgd {rate}, " in done.out
