"""The loop: exact resume, accumulation, numbers that are not finite, memory, interruption, budgets."""

from __future__ import annotations

import os
import signal
import time
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from small import MODELS, VOCAB, Recorder, corpus, losses, trainer

from textwright.errors import TrainingError
from textwright.models import LanguageModel
from textwright.text.batching import Streams
from textwright.training import loop, state
from textwright.training.averaging import triggered
from textwright.training.optimizer import (
    AdamConfig,
    ConstantSchedule,
    CosineSchedule,
    MuonConfig,
    PlateauSchedule,
    SGDConfig,
)
from textwright.training.records import EvaluationRecord, Look, Progress
from textwright.training.settings import Budget, EMAAveraging, NoAveraging, TailAveraging, TriggeredAveraging


class Stopper(Recorder):
    """Presses Ctrl-C after some steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def stepped(self, progress: Progress, record) -> None:
        if record.step == self.after:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("stop", [1, 5, 8])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"averaging": EMAAveraging(decay=0.9)},
        {"softmax_samples": 4, "accumulation": 2},
        {"softmax_samples": 4, "optimizer": MuonConfig()},
    ],
    ids=["plain", "ema", "sampled", "muon"],
)
def test_an_interrupted_run_continues_bit_for_bit(
    tmp_path: Path, family: str, stop: int, options: dict[str, Any]
) -> None:
    whole = trainer(tmp_path / "whole", family, **options)
    expected = whole.run()
    stopped = trainer(tmp_path / "cut", family, listener=Stopper(stop), **options).run()
    assert (stopped.step, stopped.finished) == (stop, "")
    again = trainer(tmp_path / "cut", family, **options)
    resumed = again.run()
    assert losses(resumed) == losses(expected)
    assert [r.valid_loss for r in resumed.evaluations] == [r.valid_loss for r in expected.evaluations]
    for ours, theirs in zip(again.tensors.model.parameters(), whole.tensors.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulation_changes_nothing(tmp_path: Path, family: str, parts: int) -> None:
    """k micro-batches equal one batch: padded rows, a last partial batch and label smoothing included."""
    model = MODELS[family].model_copy(update={"dropout": 0.0})
    options = {"label_smoothing": 0.1, "steps": 9}
    torch.manual_seed(0)
    one = trainer(tmp_path / "one", model=model.build(), **options).run()
    torch.manual_seed(0)
    many = trainer(tmp_path / "many", model=model.build(), accumulation=parts, **options).run()
    assert losses(many) == pytest.approx(losses(one), abs=1e-6)
    assert [r.gradient_norm for r in many.steps] == pytest.approx([r.gradient_norm for r in one.steps], abs=1e-5)


@pytest.mark.parametrize("family", MODELS)
def test_training_learns(tmp_path: Path, family: str) -> None:
    options = {"optimizer": AdamConfig(learning_rate=0.02), "schedule": CosineSchedule(warmup=10)}
    progress = trainer(tmp_path, family, steps=200, **options).run()
    assert progress.evaluations[0].train_loss is None  # before training: what it is compared with
    assert progress.best_loss is not None
    assert progress.best_loss < 1.3 < progress.evaluations[0].valid_loss


def test_out_of_memory_splits_the_batch_and_changes_nothing_else(tmp_path: Path, monkeypatch) -> None:
    model = MODELS["lstm"].model_copy(update={"dropout": 0.0})
    torch.manual_seed(0)
    expected = trainer(tmp_path / "whole", model=model.build()).run()
    forward = loop.Objective.forward

    def scarce(self, batch, state=None):
        if len(batch.tokens) > 3:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return forward(self, batch, state)

    recorder = Recorder()
    torch.manual_seed(0)
    subject = trainer(tmp_path / "scarce", model=model.build(), listener=recorder)
    monkeypatch.setattr(loop.Objective, "forward", scarce)
    subject.validate = lambda model: Look(1.0)
    got = subject.run()
    assert losses(got) == pytest.approx(losses(expected), abs=1e-6)
    assert got.parts == 4
    assert len(recorder.notices) == 2
    assert "split into 4 parts" in recorder.notices[1]


def test_a_new_model_is_prepared_once_and_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock)
    models = []

    def begin(model: LanguageModel) -> None:
        nonlocal clock
        clock += 45
        models.append(model)

    stopped = trainer(tmp_path / "run", listener=Stopper(2), begin=begin).run()
    assert stopped.seconds == 45
    clock += 1000  # a pause
    again = trainer(tmp_path / "run", begin=begin).run()
    assert again.seconds == 45
    assert len(models) == 1
    minutes = trainer(tmp_path / "spent", begin=begin, budget=Budget(minutes=0.75)).run()
    assert minutes.step == 0  # nothing of the time was left
    assert minutes.finished == loop.SPENT


def test_one_row_that_does_not_fit_is_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    def never(self, batch, state=None):
        raise MemoryError

    subject = trainer(tmp_path)
    subject.validate = lambda model: Look(1.0)
    monkeypatch.setattr(loop.Objective, "forward", never)
    with pytest.raises(TrainingError, match="smaller model"):
        subject.run()


def test_other_errors_are_not_taken_for_memory(tmp_path: Path, monkeypatch) -> None:
    def broken(self, batch, state=None):
        raise RuntimeError("shapes do not fit")

    subject = trainer(tmp_path)
    subject.validate = lambda model: Look(1.0)
    monkeypatch.setattr(loop.Objective, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        subject.run()


class Poison(Recorder):
    """Puts a number that is not finite into the model after some step."""

    def __init__(self, after: int, times: int = 1) -> None:
        super().__init__()
        self.after, self.times = after, times
        self.subject: loop.Trainer | None = None

    def stepped(self, progress: Progress, record) -> None:
        if record.step == self.after and self.times:
            self.times -= 1
            with torch.no_grad():
                self.subject.tensors.model.head.weight[0, 0] = float("nan")


def test_broken_weights_are_rolled_back_named_and_never_saved(tmp_path: Path) -> None:
    poison = Poison(after=5)
    subject = poison.subject = trainer(tmp_path, listener=poison)
    progress = subject.run()
    assert progress.finished
    assert progress.easing == 0.5
    assert len(poison.notices) == 1
    assert "weight embed.weight" in poison.notices[0]  # tied with the head's
    assert "Rolled back to step 4" in poison.notices[0]
    assert all(bool(p.isfinite().all()) for p in subject.tensors.model.parameters())


def test_a_halved_rate_outlives_the_process(tmp_path: Path) -> None:
    subject = trainer(tmp_path, "lstm")
    subject._resume()
    subject._roll_back("a weight", "step 0")
    again = trainer(tmp_path, "lstm")
    again._resume()
    assert again.progress.easing == 0.5


def test_a_roll_back_to_the_beginning_forgets_what_rows_carried(tmp_path: Path) -> None:
    """Of several processes each would have taken its share of its own share, too."""
    subject = trainer(tmp_path, "lstm")
    subject._resume()
    for batch, cursor in islice(subject.batches.batches(subject.progress.cursor), 2):
        assert subject._step(0.0, batch, cursor)
    assert subject.tensors.carried is not None
    subject._roll_back("a weight", "step 2")
    assert subject.progress.step == 0
    assert subject.tensors.carried is None


def test_a_run_that_always_diverges_ends_with_advice(tmp_path: Path) -> None:
    poison = Poison(after=5, times=100)
    poison.subject = trainer(tmp_path, listener=poison)
    with pytest.raises(
        TrainingError, match=r"lower rate: --set training\.optimizer\.learning_rate=0\.0001 and another --out"
    ):
        poison.subject.run()


def test_a_bad_batch_is_skipped_and_named(tmp_path: Path, monkeypatch) -> None:
    backward = loop.Trainer._backward

    def poisoned(self, part, state, total):
        loss, after = backward(self, part, state, total)
        if self.progress.step == 3 and not self.rejected:
            self.tensors.model.embed.weight.grad[2] = float("inf")
        return loss, after

    monkeypatch.setattr(loop.Trainer, "_backward", poisoned)
    recorder = Recorder()
    progress = trainer(tmp_path, listener=recorder).run()
    assert len(recorder.notices) == 1
    assert "gradient of embed.weight (step 4, epoch" in recorder.notices[0]
    assert progress.step == 12


def test_a_learning_rate_that_explodes_is_caught(tmp_path: Path) -> None:
    """The real thing: no hook, a rate of 1e38 with SGD and no clipping."""
    options = {"optimizer": SGDConfig(learning_rate=1e38), "clip": 0.0}
    with pytest.raises(TrainingError, match="training diverged"):
        trainer(tmp_path, "gru", schedule=ConstantSchedule(warmup=0), **options).run()


def test_weights_are_kept_by_their_score_even_if_the_loss_rises(tmp_path: Path) -> None:
    """The look before training has a loss and no score: it is no reason to keep the weights that one began with."""
    subject = trainer(tmp_path, evaluations=4, steps=8, keep="score", patience=3)
    looks = iter([Look(1.0), Look(2.0, 10.0), Look(3.0, 20.0), Look(2.5, 15.0), Look(4.0, 20.0)])
    subject.validate = lambda model: next(looks)
    progress = subject.run()
    assert [record.best for record in progress.evaluations] == [True, True, True, False, False]
    assert (progress.best_score, progress.best_loss) == (20.0, 3.0)


def test_patience_ends_a_run_that_does_not_improve(tmp_path: Path) -> None:
    subject = trainer(tmp_path, evaluations=12, patience=3)
    subject.validate = lambda model: Look(2.0)
    progress = subject.run()
    assert progress.finished == "no improvement in 3 evaluations"
    assert progress.step == 3


def test_patience_waits_for_the_score_where_that_decides(tmp_path: Path) -> None:
    subject = trainer(tmp_path, evaluations=12, patience=3, keep="score")
    looks = iter([Look(2.0), Look(1.9, 5.0), Look(1.8, 9.0), *(Look(1.7 - 0.1 * n, 8.0) for n in range(9))])
    subject.validate = lambda model: next(looks)
    progress = subject.run()
    assert progress.finished == "no improvement in 3 evaluations"
    assert (progress.step, progress.best_step) == (5, 2)


def test_plateau_lowers_the_rate(tmp_path: Path) -> None:
    schedule = PlateauSchedule(warmup=0, patience=0)
    subject = trainer(tmp_path, evaluations=4, schedule=schedule, optimizer=AdamConfig(learning_rate=0.01))
    subject.validate = lambda model: Look(2.0)
    rates = [record.learning_rate for record in subject.run().steps]
    assert rates[:3] == [0.01] * 3
    assert rates[-1] == pytest.approx(0.01 / 8)


def test_budget_in_epochs_sees_every_token_that_often(tmp_path: Path) -> None:
    data = corpus([90, 40, 7, 200, 3])
    progress = trainer(tmp_path, data=data, budget=Budget(epochs=3)).run()
    assert progress.tokens == 3 * data.facts.tokens


def test_budget_in_minutes_ends_in_time(tmp_path: Path) -> None:
    progress = trainer(tmp_path, budget=Budget(minutes=1 / 60)).run()
    assert progress.evaluations[-1].share >= 1
    assert progress.steps[-1].learning_rate < 0.3e-3  # the schedule ended with the time


def test_a_finished_run_goes_on_with_a_larger_budget(tmp_path: Path) -> None:
    trainer(tmp_path, steps=5).run()
    assert trainer(tmp_path, steps=5).run().step == 5
    assert trainer(tmp_path, steps=9).run().step == 9


def test_a_larger_budget_survives_a_roll_back(tmp_path: Path) -> None:
    """To the save of the finished run, which says that its budget is spent."""
    trainer(tmp_path, steps=5).run()
    poison = Poison(after=7)
    subject = poison.subject = trainer(tmp_path, steps=12, listener=poison, evaluations=1)
    progress = subject.run()
    assert "Rolled back to step 5" in poison.notices[0]
    assert progress.step == 12


def test_a_larger_budget_begins_its_tail_anew(tmp_path: Path) -> None:
    """Also when it is interrupted before its first step."""
    options = {"averaging": TailAveraging(tail=0.5)}
    trainer(tmp_path, steps=6, **options).run()
    for _ in range(2):
        subject = trainer(tmp_path, steps=12, **options)
        subject._resume()
        assert int(subject.tensors.average.n_averaged) == 0
        subject._save()


def test_looks_take_time_that_is_told_and_not_given_back(tmp_path: Path) -> None:
    subject = trainer(tmp_path, steps=2, evaluations=2)
    look = 0.05

    def validate(model: LanguageModel) -> Look:
        time.sleep(look)
        return Look(1.0)

    subject.validate = validate
    assert subject.run().seconds > 3 * look
    assert state.read_progress(state.newest(tmp_path)) == subject.progress


@pytest.mark.parametrize("averaging", [NoAveraging(), EMAAveraging(decay=0.9)], ids=["plain", "ema"])
def test_the_calibrated_model_is_looked_at_and_kept_and_the_other_one_trained(tmp_path: Path, averaging: Any) -> None:
    made: list[LanguageModel] = []

    def calibrate(model: LanguageModel) -> tuple[LanguageModel, None]:
        assert not model.training
        made.append(deepcopy(model))
        made[-1].adjust(0.5, torch.zeros(VOCAB))
        return made[-1], None

    plain = trainer(tmp_path / "plain", "lstm", averaging=averaging)
    subject = trainer(tmp_path / "calibrated", "lstm", averaging=averaging, calibrate=calibrate)
    seen: list[LanguageModel] = []
    kept: list[LanguageModel] = []

    def validate(model: LanguageModel) -> Look:
        seen.append(model)
        return Look(10.0 - len(seen))

    subject.validate, subject.keep = validate, kept.append
    assert losses(subject.run()) == losses(plain.run())  # under dropout
    assert [id(model) for model in seen] == [id(model) for model in kept] == [id(model) for model in made]
    assert len(made) == 4
    for one, other in zip(subject.tensors.model.parameters(), plain.tensors.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_gradient_norms_of_layers_are_in_the_history(tmp_path: Path) -> None:
    (record, *_) = trainer(tmp_path, steps=2, clip=0.0).run().steps
    assert list(record.layers) == ["embed", "blocks.0", "blocks.1", "norm"]
    assert sum(norm**2 for norm in record.layers.values()) ** 0.5 == pytest.approx(record.gradient_norm, rel=1e-5)


def test_samples_come_with_every_evaluation(tmp_path: Path) -> None:
    recorder = Recorder()
    progress = trainer(tmp_path, listener=recorder).run()
    assert recorder.samples == len(progress.evaluations) == 4
    assert {record.sample for record in progress.evaluations} == {"sample"}


def test_tail_averaging_evaluates_the_mean_of_weights(tmp_path: Path) -> None:
    options = {"averaging": TailAveraging(tail=0.5), "steps": 10}
    subject = trainer(tmp_path, "gru", **options)
    seen: list[torch.Tensor] = []
    update = subject._update_average

    def watch(share: float) -> None:
        update(share)
        if share >= 0.5:
            seen.append(subject.tensors.model.embed.weight.detach().clone())

    subject._update_average = watch
    subject.run()
    averaged = subject.tensors.average.module.embed.weight
    torch.testing.assert_close(averaged, torch.stack(seen).mean(0))


def test_a_run_with_samples_moves_the_rows_of_its_tables(tmp_path: Path) -> None:
    """One step with one word drawn: words that were neither read nor drawn stay where they were."""
    data = corpus([40])
    data.tokens[:-1] = data.tokens[:-1].clamp(max=3)
    subject = trainer(tmp_path, "lstm", data=data, steps=1, softmax_samples=1, evaluations=1)
    embed = subject.tensors.model.embed
    before = embed.weight.detach().clone()
    subject.run()
    assert embed.sparse
    moved = (embed.weight != before).any(1)
    assert bool(moved[:4].all())
    assert int(moved.sum()) < VOCAB


def test_triggered() -> None:
    def records(losses: list[float]) -> list[EvaluationRecord]:
        common = {"step": 0, "epoch": 0, "share": 0.0, "train_loss": None, "tokens": 0, "seconds": 0.0, "best": False}
        return [EvaluationRecord(valid_loss=loss, **common) for loss in losses]

    falling = [5.0, 4.0, 3.0, 2.0, 1.0]
    assert not triggered(records(falling), 1)
    assert not triggered(records([*falling, 1.5]), 1)  # not above the best of all but the one before
    assert triggered(records([*falling, 1.5, 1.2]), 1)
    assert triggered(records([*falling, 2.5]), 1)
    assert not triggered(records([*falling, 2.5]), 3)
    assert triggered(records([*falling, 4.5, 0.5, 0.4]), 3)  # once is enough
    assert not triggered([], 1)


def test_triggered_averaging_begins_when_the_validation_loss_rises(tmp_path: Path) -> None:
    """Under a rate that spoils the weights it does; until then the weights themselves are evaluated."""
    options = {"averaging": TriggeredAveraging(patience=1), "evaluations": 12, "steps": 24}
    calm = trainer(tmp_path / "calm", "gru", **options)
    wild = trainer(tmp_path / "wild", "gru", optimizer=SGDConfig(learning_rate=300.0), clip=0.0, **options)
    steps = []
    for subject in (calm, wild):
        progress = subject.run()
        begins = [n for n in range(len(progress.evaluations)) if triggered(progress.evaluations[: n + 1], 1)]
        averaged = progress.step - progress.evaluations[begins[0]].step if begins else 0
        assert int(subject.tensors.average.n_averaged) == averaged
        steps.append(averaged)
    assert steps[0] == 0 < steps[1]


def test_the_rate_follows_the_length_of_a_batch(tmp_path: Path) -> None:
    subject = trainer(tmp_path, "gru", steps=40, schedule=ConstantSchedule(warmup=0))
    subject.batches = Streams(corpus([4000]), 8, 16, 0, 0, varied=True)
    records = subject.run().steps
    rates = {round(record.learning_rate / 1e-3 * 16, 6) for record in records}
    assert len(rates) > 5
    assert rates == {float(round(rate)) for rate in rates}  # whole tokens of sixteen
