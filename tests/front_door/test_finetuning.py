"""A model that was trained already learns another text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from door import Run
from safetensors.torch import load_file

import textwright
from textwright.adapting import lora
from textwright.run import GenerationConfig, read_generation
from textwright.selftest import selftest
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


@pytest.mark.parametrize("method", ["full", "lora", "dora", "rslora"])
@pytest.mark.parametrize("family", ["transformer", "lstm"])
def test_it_begins_where_the_base_ended_and_learns(
    run: Run, trained: dict[str, Path], other: Path, family: str, method: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    more = () if method == "full" else ("--set", "training.optimizer.learning_rate=6e-2")
    result = run("finetune", trained[family], other, *STEPS, *more, "--method", method, "--valid", other, "--out", out)
    assert result.code == 0, result.err
    assert "parameters learn" in result.err
    assert (out / "adapter.safetensors").exists() == (method != "full")
    looks = progress(out).evaluations
    stride = ("--stride", "16") if family == "transformer" else ()
    told = run("evaluate", trained[family], "--data", other, "--json", *stride)
    assert looks[0].valid_loss == pytest.approx(json.loads(told.out)["loss"], abs=0.02)  # in bfloat16 there
    assert looks[-1].valid_loss < looks[0].valid_loss - 0.05
    now, then = (read_generation(folder, GenerationConfig) for folder in (out, trained[family]))
    new = {id for id in then.unseen if id not in now.unseen}  # what the base never saw and may be written now
    tokenizer = textwright.load(out).tokenizer
    assert new == set(then.unseen) & set(tokenizer.encode(OTHER))
    assert now.model_copy(update={"unseen": ()}) == then.model_copy(update={"unseen": ()})
    assert textwright.load(out).generate("Ten", seed=1, max_new_tokens=5)[0].tokens


@pytest.mark.parametrize("family", ["transformer", "lstm"])
def test_a_run_with_an_adapter_keeps_the_contract(
    run: Run, trained: dict[str, Path], other: Path, tmp_path: Path, family: str
) -> None:
    """Beside the weights and as a part of them, where both are the same model."""
    asked = ("finetune", trained[family], other, *STEPS, "--method", "dora", "--out", tmp_path / "out")
    assert run(*asked).code == 0
    models = [textwright.load(tmp_path / "out", apart=apart) for apart in (True, False)]
    assert [bool(lora.adapters(model.model)) for model in models] == [True, False]
    for model in models:
        assert [check for check in selftest(model) if not check.holds] == []
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(models[0].model(ids).logits, models[1].model(ids).logits, atol=1e-5, rtol=1e-4)


def test_a_base_of_four_bits(run: Run, trained: dict[str, Path], other: Path, tmp_path: Path) -> None:
    """The run that is opened is the function that was trained: its loss is the last look's."""
    out = tmp_path / "out"
    asked = ("finetune", trained["transformer"], other, *STEPS, "--method", "qlora", "--valid", other, "--out", out)
    result = run(*asked, "--set", "training.precision=float32")
    assert result.code == 0, result.err
    best = min(look.valid_loss for look in progress(out).evaluations)
    told = json.loads(run("evaluate", out, "--data", other, "--json", "--stride", "16").out)
    assert told["loss"] == pytest.approx(best, abs=2e-3)
    asked = ("finetune", trained["lstm"], other, *STEPS, "--method", "qlora", "--out", tmp_path / "two")
    run(*asked).fails("adapter.packed is for Transformers")


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
    run("finetune", spoken, other, *STEPS).fails("holds one side")
    run("finetune", trained["lstm"], tmp_path / "missing.txt", *STEPS).fails("missing.txt")
    run("finetune", trained["lstm"], other, "--minutes", "1", "--steps", "2").fails("budget")
    asked = ("finetune", trained["lstm"], other, *STEPS, "--out", tmp_path / "out")
    run(*asked, "--set", "model.width=32").fails("does not fit")
    run(*asked[:-1], tmp_path / "two", "--set", "model.vocab=100").fails("model.vocab is 100")


def test_an_adapter_stands_beside_the_weights_of_its_base(
    run: Run, trained: dict[str, Path], other: Path, tmp_path: Path
) -> None:
    base, out = trained["transformer"], tmp_path / "out"
    assert run("finetune", base, other, *STEPS, "--method", "lora", "--out", out).code == 0
    assert (out / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    ids = torch.tensor([[1, 2, 3, 4]])
    apart, merged = textwright.load(out, apart=True).model, textwright.load(out).model
    assert lora.adapters(apart) and not lora.adapters(merged)
    torch.testing.assert_close(apart(ids).logits, merged(ids).logits, atol=1e-5, rtol=1e-4)
    lora.activate(apart)
    torch.testing.assert_close(apart(ids).logits, textwright.load(base).model(ids).logits)
    more = tmp_path / "more"  # a base that has an adapter itself
    assert run("finetune", out, other, *STEPS, "--method", "dora", "--out", more).code == 0
    assert progress(more).evaluations[0].valid_loss == pytest.approx(progress(out).evaluations[-1].valid_loss, abs=0.02)


def test_it_goes_on_with_its_adapter(run: Run, trained: dict[str, Path], other: Path, tmp_path: Path) -> None:
    """Stopped and gone on with is bit by bit what goes through."""
    asked: tuple[Any, ...] = ("finetune", trained["transformer"], other, "--method", "lora", "--set")
    asked += ("training.schedule.kind=constant", "--set", "training.evaluations=1")
    for steps in ("4", "9"):
        assert run(*asked, "--steps", steps, "--out", tmp_path / "stopped").code == 0
    assert run(*asked, "--steps", "9", "--out", tmp_path / "through").code == 0
    saves = [newest(tmp_path / name / "training") for name in ("stopped", "through")]
    first, second = (load_file(save / "model.safetensors") for save in saves if save is not None)
    assert first.keys() == second.keys() == {name for name in first if "adapters" in name}
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_frozen_weights_stay(run: Run, trained: dict[str, Path], other: Path, tmp_path: Path) -> None:
    base, out = trained["lstm"], tmp_path / "out"
    frozen = ("--set", 'frozen=["embed", "cells.0.bias"]')
    assert run("finetune", base, other, *STEPS, *frozen, "--out", out).code == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (base, out))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("embed", "cells.0.bias"))}
    run("finetune", base, other, "--set", 'frozen=["cell.0"]', "--out", tmp_path / "no").fails("begins with 'cell.0'")
    every = ("--set", 'frozen=["embed", "cells", "head"]')
    run("finetune", base, other, *every, "--out", tmp_path / "none").fails("every weight is frozen")


def test_what_no_adapter_can_do(run: Run, trained: dict[str, Path], other: Path, tmp_path: Path) -> None:
    asked = ("finetune", trained["lstm"], other, *STEPS, "--out", tmp_path / "out", "--method")
    run(*asked, "lore").fails("no method 'lore'", "lora")
    run(*asked, "lora", "--set", "adapter.rank=0").fails("adapter.rank")
    run(*asked, "lora", "--set", 'adapter.targets=["qkv.weight"]').fails("ends with 'qkv.weight'", "weight_hh_l0")
    run(*asked, "lora", "--set", "model.weight_drop=0.2").fails("weight_drop")
    run(*asked, "lora", "--set", 'frozen=["embed"]').fails("leave out frozen")
    run(*asked, "lora", "--set", "training.softmax_samples=5").fails("softmax_samples")
    run(*asked, "lora", "--set", "training.calibrate=true").fails("training.calibrate", "learns all weights")
    run(*asked, "lora", "--set", "training.embedding=cooccurrence").fails("training.embedding", "begins anew")
    run("train", other, "--set", "adapter.rank=2", "--out", tmp_path / "out").fails("textwright finetune")
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
@pytest.mark.parametrize("family", ["transformer", "lstm"])
def test_a_learned_prompt(run: Run, trained: dict[str, Path], other: Path, tmp_path: Path, family: str) -> None:
    """Nothing else learns; it writes, is measured and proven, and leaves for peft alone."""
    out = tmp_path / "out"
    asked = ("finetune", trained[family], other, "--valid", other, "--out", out, "--method", "prompt")
    settings = ("prompt.tokens=4", "training.precision=float32", "training.optimizer.learning_rate=3e-2")
    context = ("training.context=12",) if family == "transformer" else ()
    more = [word for setting in (*settings, *context) for word in ("--set", setting)]
    result = run(*asked, "--steps", "40", "--set", "training.evaluations=3", *more)
    assert result.code == 0, result.err
    assert "64 parameters learn" in result.err  # four of a width of 16
    assert load_file(out / "adapter.safetensors").keys() == {"prompt"}
    looks = [look.valid_loss for look in progress(out).evaluations]
    assert min(looks) < looks[0]
    stride = ("--stride", "12") if family == "transformer" else ()
    told = json.loads(run("evaluate", out, "--data", other, "--json", *stride).out)
    assert told["loss"] == pytest.approx(min(looks), abs=2e-2)
    assert run("generate", out, "--prompt", "Ten", "--max-new-tokens", "5", "--seed", "1").code == 0
    result = run("selftest", out)
    assert result.code == 0, result.out
    run("export", out, tmp_path / "there").fails("--to peft")
    run("finetune", out, other, "--steps", "1", "--out", tmp_path / "again").fails("fine-tune its base")
    assert not (tmp_path / "there").exists()
    if family == "transformer":
        pytest.importorskip("peft")
        result = run("export", out, tmp_path / "there", "--to", "peft")
        assert result.code == 0, result.err
        said = json.loads((tmp_path / "there" / "adapter_config.json").read_text())
        assert said["peft_type"] == "PROMPT_TUNING" and said["num_virtual_tokens"] == 4
    asked = (*asked[:3], "--method", "prompt", "--out", tmp_path / "no", "--set")
    run(*asked, "frozen=[head]", "--set", "prompt.tokens=4").fails("leave out frozen")
    if family == "transformer":
        run(*asked, "prompt.tokens=16").fails("larger than model.window 16 less prompt.tokens, 0")
