"""Fine-tuning on prompts with answers and on conversations: only answers carry loss, and the model learns to stop."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from door import Run

import textwright
from textwright.preference_job import PreferenceJob

COLOURS = {"sky": "blue", "grass": "green", "blood": "red", "snow": "white", "coal": "black", "sun": "yellow"}
QUICK = ("--set", "training.evaluations=2", "--set", "training.optimizer.learning_rate=1e-2")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models that have seen what the examples are about."""
    folder = tmp_path_factory.mktemp("bases")
    text = folder / "colours.txt"
    text.write_text("".join(f"{n} {thing} is {colour}.\n" for n in range(300) for thing, colour in COLOURS.items()))
    settings = {"model.width": 64, "model.layers": 1, "training.evaluations": 2}
    for family in ("transformer", "lstm"):
        more = {"model.window": 64} if family == "transformer" else {}
        textwright.train(
            text, model=family, tokenizer="char", steps=60, out=folder / family, settings={**settings, **more}
        )
    return {family: folder / family for family in ("transformer", "lstm")}


@pytest.fixture
def imported(theirs: Path, tmp_path: Path, run: Run) -> Path:
    """A model whose template ends nothing."""
    assert run("import", theirs, "--out", tmp_path / "imported").code == 0
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (tmp_path / "imported" / "chat_template.jinja").write_text(template)
    return tmp_path / "imported"


def rows(folder: Path, shape: str, count: int = 120) -> Path:
    """Questions about colours, with the number of the question as noise."""
    path = folder / f"{shape}.jsonl"
    lines = []
    for number in range(count):
        thing, colour = list(COLOURS.items())[number % len(COLOURS)]
        asked, said = f"{number} {thing}?", f" {colour}"
        row: Any = {"prompt": asked, "completion": said}
        if shape == "messages":
            row = {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("family", ["transformer", "lstm"])
def test_a_model_learns_to_answer_and_to_stop(run: Run, base: dict[str, Path], family: str, tmp_path: Path) -> None:
    data, out = rows(tmp_path, "prompts"), tmp_path / "out"
    before = json.loads(run("evaluate", base[family], "--answers", "--data", data, "--json").out)
    result = run("finetune", base[family], data, "--epochs", "12", *QUICK, "--out", out)
    assert result.code == 0, result.err
    assert "none left out" in result.out and "are answers and carry loss" in result.out
    assert "sky?[ ][b][l][u][e][" in result.out or "sky?[ " in result.out
    after = json.loads(run("evaluate", out, "--answers", "--data", data, "--json").out)
    assert after["tokens"] == before["tokens"]
    assert after["loss"] < 0.5 * before["loss"]
    assert run("evaluate", out, "--answers").out == run("evaluate", out).out
    model = textwright.load(out)
    right = 0
    for thing, colour in COLOURS.items():
        (text,) = model.generate(f"7 {thing}?", strategy="greedy", max_new_tokens=40)
        assert text.finish_reason == "end"
        right += text.text == f" {colour}"
    assert right >= 5


def test_a_conversation_is_learned_by_an_adapter(
    run: Run, base: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model without a template gets one, and chat uses it."""
    data, out = rows(tmp_path, "messages"), tmp_path / "out"
    result = run("finetune", base["lstm"], data, "--epochs", "12", "--method", "lora", *QUICK, "--out", out)
    assert result.code == 0, result.err
    assert "### user:" in result.out and f"textwright chat {out}" in result.out
    monkeypatch.setattr("sys.stdin", io.StringIO("7 sky?\n"))
    done = run("chat", out, "--max-new-tokens", "20", "--seed", "1")
    assert done.code == 0 and done.out.strip(), done.err
    assert textwright.load(out).reply(["7 sky?"], max_new_tokens=30, seed=1).finish_reason == "end"
    assert run("selftest", out).code == 0


def test_it_goes_on_where_it_stopped(run: Run, base: dict[str, Path], tmp_path: Path) -> None:
    data = rows(tmp_path, "prompts")
    words = ("finetune", base["transformer"], data, *QUICK)
    for name, steps in (("whole", ["8"]), ("parts", ["3", "8"])):
        for step in steps:
            result = run(*words, "--steps", step, "--set", "training.schedule.kind=constant", "--out", tmp_path / name)
            assert result.code == 0, result.err
    weights = [(tmp_path / name / "training").glob("*") for name in ("whole", "parts")]
    assert all(list(found) for found in weights)
    results = [json.loads(run("evaluate", tmp_path / name, "--answers", "--json").out) for name in ("whole", "parts")]
    assert results[0] == results[1]


def test_what_cannot_be_learned_from(run: Run, imported: Path, base: dict[str, Path], tmp_path: Path) -> None:
    data, out = rows(tmp_path, "prompts"), tmp_path / "out"
    asked = ("finetune", base["transformer"], data, "--steps", "2", "--out", out)
    run("finetune", imported, data, "--steps", "2", "--out", out).fails("never learn to stop", "prompts.jsonl:")
    run(*asked, "--set", "examples.longest=4").fails("none is left to train on", "examples.longest")
    run(*asked, "--set", "examples.longest=4000").fails("larger than model.window")
    run(*asked, "--fields", "question", "answer").fails("question")
    run(*asked, "--learn", "text", "--fields", "prompt", "completion").fails("leave")
    (tmp_path / "few.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    run("finetune", base["transformer"], tmp_path / "few.jsonl", "--steps", "2", "--out", out).fails("too few")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": ""}\n')
    run(*asked[:2], tmp_path / "bad.jsonl", "--valid", data, *asked[3:]).fails("bad.jsonl:2", "completion is empty")
    run("evaluate", base["lstm"], "--answers").fails("no examples of its own", "--data FILE")
    run("evaluate", base["lstm"], "--answers", "--data", data, "--dynamic").fails("leave out")
    run(*asked, "--set", "examples.width=3").fails("examples.width")
    assert run(*asked, "--learn", "text", "--set", "source.field=prompt").code == 0


@pytest.mark.parametrize(("family", "method"), [("transformer", "full"), ("lstm", "lora")])
def test_a_preference_is_learned(run: Run, base: dict[str, Path], family: str, method: str, tmp_path: Path) -> None:
    """Of two answers of the same kind the shouted one; the other becomes less likely than it was."""
    data, out = tmp_path / "liked.jsonl", tmp_path / "out"
    lines = [
        {"prompt": f"{n} {thing}", "chosen": f" is {colour}!", "rejected": f" is {colour}."}
        for n, (thing, colour) in enumerate(list(COLOURS.items()) * 20)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    words = ("--epochs", "6", "--set", "training.optimizer.learning_rate=3e-3", "--set", "training.evaluations=2")
    result = run("finetune", base[family], data, "--method", method, *words, "--out", out)
    assert result.code == 0, result.err
    assert "[!]" in result.out and "rather than:" in result.out and "[.]" in result.out
    assert "0.6931" in result.out  # log 2: before training, no answer is preferred more than by the base
    assert "preferred rightly" in result.out
    row = next(line.split() for line in result.out.splitlines() if line.startswith("test "))
    judged, loss, rightly, margin = map(float, row[1:])
    assert judged == 6 and loss < 0.3 and rightly == 1 and margin > 1
    again = run("finetune", base[family], data, "--method", method, *words, "--set", "examples.beta=0", "--out", out)
    again.fails("examples.beta")
    assert run("evaluate", out, "--answers").code == 0


def test_a_preference_on_four_bits_begins_at_the_rounded_base(run: Run, base: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "liked.jsonl"
    liked = ({"prompt": f"{n} sky", "chosen": " is blue!", "rejected": " is blue."} for n in range(60))
    data.write_text("".join(json.dumps(line) + "\n" for line in liked), encoding="utf-8")
    asked = ("--method", "qlora", "--steps", "2", "--set", "training.evaluations=2", "--out", tmp_path / "out")
    result = run("finetune", base["transformer"], data, *asked)
    assert result.code == 0, result.err
    assert "0.6931" in result.out


def test_what_examples_have_no_use_for_is_refused(run: Run, base: dict[str, Path], tmp_path: Path) -> None:
    data, empty = rows(tmp_path, "prompts"), tmp_path / "empty.jsonl"
    empty.write_text("\n")
    asked = ("finetune", base["lstm"], data, "--steps", "1", "--out", tmp_path / "out")
    for words, told in (
        (("--valid", data, "--set", "test_fraction=0.1"), "leave out test_fraction"),
        (("--test", data, "--set", "test_fraction=0.1"), "leave out test_fraction"),
        (("--set", "source.field=prompt"), "leave out source.field"),
        (("--set", "source.documents=line"), "leave out source.documents"),
        (("--set", "examples.beta=0.5"), "examples.beta is about preferences"),
        (("--set", "tokenizer.kind=bpe"), "keeps the tokenizer of its base"),
    ):
        run(*asked, *words).fails(told)
    asked = ("finetune", base["lstm"], empty, "--learn", "answers", "--valid", data, "--steps", "1")
    run(*asked, "--out", tmp_path / "out").fails("holds no examples")
    assert not (tmp_path / "out").exists()


def test_a_base_that_changed_is_asked_again(base: dict[str, Path], tmp_path: Path) -> None:
    """What the base thinks of a pair depends on its weights, their rounding and the precision."""
    shutil.copytree(base["transformer"], tmp_path / "base")
    asked: dict[str, Any] = {"base": str(tmp_path / "base"), "examples": {"kind": "preferences"}}
    first = PreferenceJob.request(asked)
    assert PreferenceJob.request(asked) == json.loads(json.dumps(first)) == first
    assert PreferenceJob.request({**asked, "adapter": {"packed": "nf4"}}) != first
    assert PreferenceJob.request({**asked, "training": {"precision": "bfloat16"}}) != first
    (tmp_path / "base" / "model.safetensors").touch()
    assert PreferenceJob.request(asked) != first


def test_pairs_are_counted_as_pairs(run: Run, base: dict[str, Path], tmp_path: Path) -> None:
    """In what is printed, in the verdict and in the report."""
    data, out = tmp_path / "liked.jsonl", tmp_path / "out"
    liked = ({"prompt": f"{n} sky", "chosen": " is blue!", "rejected": " is blue."} for n in range(60))
    data.write_text("".join(json.dumps(line) + "\n" for line in liked), encoding="utf-8")
    result = run("finetune", base["lstm"], data, "--steps", "4", "--set", "training.evaluations=2", "--out", out)
    assert result.code == 0, result.err
    assert "pairs/s" in result.out and "tokens/s" not in result.out
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "nats a pair" in report and "pairs seen" in report and "pairs a second" in report
    assert "tokens seen" not in report and "training answers, tokens" not in report
