"""The verdict follows from the curves."""

from __future__ import annotations

import pytest

from textwright.training.records import EvaluationRecord, Progress
from textwright.verdict import verdict


def progress(valid: list[float], train: list[float | None]) -> Progress:
    looks = [
        EvaluationRecord(
            step=number,
            epoch=0,
            share=number / (len(valid) - 1),
            valid_loss=loss,
            train_loss=mean,
            tokens=number,
            seconds=1.0,
            best=False,
        )
        for number, (loss, mean) in enumerate(zip(valid, train, strict=True))
    ]
    return Progress(evaluations=tuple(looks), best_step=min(looks, key=lambda look: look.valid_loss).step)


@pytest.mark.parametrize(
    ("valid", "train", "words"),
    [
        ([5.0, 3.0, 2.5, 2.4, 2.3], [None, 4.0, 2.6, 2.4, 2.3], "Still learning: the last third"),
        ([5.0, 2.0, 1.95, 1.949, 1.948], [None, 2.1, 1.96, 1.95, 1.94], "Fitted: the validation loss has settled"),
        ([5.0, 2.0, 1.95, 1.949, 1.948], [None, 2.0, 1.8, 1.6, 1.5], "Fitted, with a gap of 0.448"),
        (
            [5.0, 2.0, 1.9, 2.1, 2.3],
            [None, 2.0, 1.5, 1.2, 1.0],
            "best at step 2 (1.900 nats a token) and has risen by 0.4",
        ),
        ([5.0, 2.0], [None, 2.0], "Too short to tell"),
    ],
)
def test_verdicts(valid: list[float], train: list[float | None], words: str) -> None:
    assert words in verdict(progress(valid, train))


def test_the_weights_that_are_kept_are_those_that_scored_best() -> None:
    seen = progress([5.0, 2.0, 1.9, 2.1, 2.3], [None, 2.0, 1.5, 1.2, 1.0])
    assert "the best weights are kept" in verdict(seen)
    scored = verdict(seen.model_copy(update={"best_step": 4}))
    assert "the weights of step 4, which scored best, are kept" in scored
    assert "the best weights are kept" not in scored


def test_training_that_did_harm() -> None:
    """A base whose loss only rose: its weights are kept, and more time is no advice."""
    told = verdict(progress([2.0, 3.5, 3.1, 2.9], [None, 3.0, 2.9, 2.8]), unit="pair")
    assert "Training did harm: the validation loss was 2.000 nats a pair before it" in told
    assert "learning_rate" in told and "More time" not in told


def test_an_interrupted_run_has_no_last_third() -> None:
    seen = progress([5.0, 3.0, 2.5, 2.0], [None, 3.0, 2.4, 1.9])
    looks = [look.model_copy(update={"share": look.share / 2}) for look in seen.evaluations]
    told = verdict(Progress(evaluations=tuple(looks)))
    assert "Still learning: what came after step 2 lowered" in told


def test_losses_that_do_not_compare_are_not_compared() -> None:
    """The texts of the training were cut otherwise: no gap is told, and no figure of it."""
    seen = progress([3.0, 2.0, 2.0], [None, 1.0, 1.0])
    assert "against 1.000" in verdict(seen)
    assert "1.000" not in verdict(seen, comparable=False)
    assert "gap" not in verdict(seen, comparable=False)
