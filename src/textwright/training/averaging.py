"""Averages of weights: which one, how it moves, and when it begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from textwright.models.base import LanguageModel
from textwright.training.records import EvaluationRecord
from textwright.training.settings import AveragingConfig


def average_of(model: LanguageModel, config: AveragingConfig) -> AveragedModel | None:
    """A copy of the model that will hold the average of its weights; None where none is wanted."""
    if config.kind == "none":
        return None
    if config.kind == "ema":
        return AveragedModel(model, multi_avg_fn=moving(config.decay))
    return AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())  # type: ignore[no-untyped-call]


def moving(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential moving average whose weight of the past grows to `decay`: early weights are soon forgotten, also
    where there are few steps (as TensorFlow's ExponentialMovingAverage does with `num_updates`)."""

    @torch.no_grad()
    def update(averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        kept = min(decay, (1 + float(count)) / (10 + float(count)))
        torch._foreach_lerp_(averages, weights, 1 - kept)

    return update


def triggered(evaluations: Sequence[EvaluationRecord], patience: int) -> bool:
    """The loss of an evaluation was above the best of those that lay more than `patience` before it."""
    losses = [record.valid_loss for record in evaluations]
    return any(loss > min(losses[: place - patience]) for place, loss in enumerate(losses) if place > patience)
