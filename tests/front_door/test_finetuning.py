"""A model that was trained already learns another text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from door import Run

import textwright
from textwright.run import GenerationConfig, read_generation
from textwright.training.records import Progress
from textwright.training.state import newest, read_progress

OTHER = "Ten green bottles hanging on the wall, ten green bottles.\n"
STEPS = ("--steps", "8", "--set", "training.evaluations=2", "--set", "training.optimizer.learning_rate=3e-3")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "bottles.txt"
    path.write_text(OTHER * 60, encoding="utf-8")
    return path


def progress(out: Path) -> Progress:
    save = newest(out / "training")
    assert save is not None
    return read_progress(save)


@pytest.mark.parametrize("family", ["transformer", "lstm"])
def test_it_begins_where_the_base_ended_and_learns(
    run: Run, trained: dict[str, Path], other: Path, family: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("finetune", trained[family], other, *STEPS, "--valid", other, "--out", out)
    assert result.code == 0, result.err
    assert "full fine-tuning" in result.err
    looks = progress(out).evaluations
    stride = ("--stride", "16") if family == "transformer" else ()
    told = run("evaluate", trained[family], "--data", other, "--json", *stride)
    assert looks[0].valid_loss == pytest.approx(json.loads(told.out)["loss"], abs=0.02)  # in bfloat16 there
    assert looks[-1].valid_loss < looks[0].valid_loss - 0.1
    assert read_generation(out, GenerationConfig) == read_generation(trained[family], GenerationConfig)
    assert textwright.load(out).generate("Ten", seed=1, max_new_tokens=5)[0].tokens


def test_it_goes_on_without_its_base(run: Run, trained: dict[str, Path], other: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(trained["lstm"], base)
    asked: tuple[Any, ...] = ("finetune", base, other, "--out", tmp_path / "out")
    assert run(*asked, *STEPS).code == 0
    (base / "model.safetensors").unlink()
    more = [word.replace("8", "12") if word == "8" else word for word in STEPS]
    result = run(*asked, *more)
    assert result.code == 0, result.err
    assert progress(tmp_path / "out").step == 12


def test_what_is_no_base(run: Run, trained: dict[str, Path], other: Path, spoken: Path, tmp_path: Path) -> None:
    run("finetune", tmp_path / "nowhere", other, *STEPS).fails("does not exist")
    run("finetune", spoken, other, *STEPS).fails("was trained to convert", "go on writing a text")
    run("finetune", trained["lstm"], tmp_path / "missing.txt", *STEPS).fails("missing.txt")
    run("finetune", trained["lstm"], other, "--minutes", "1", "--steps", "2").fails("budget")
    asked = ("finetune", trained["lstm"], other, *STEPS, "--out", tmp_path / "out")
    run(*asked, "--set", "model.width=32").fails("does not fit")
    run(*asked[:-1], tmp_path / "two", "--set", "model.vocab=100").fails("model.vocab is 100")
