"""Optimisers and learning-rate schedules: one class each, so that none has an option it would ignore."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from textwright.config import Config
from textwright.models.base import LanguageModel
from textwright.training.muon import Muon, Together
from textwright.training.rows import RowAdamW


class AdamConfig(Config):
    """AdamW (Loshchilov and Hutter 2019), or Adam with its decay in the gradient (Kingma and Ba 2015)."""

    kind: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = Field(
        1e-3, gt=0, allow_inf_nan=False, description="the highest one, reached after the warm-up"
    )
    betas: tuple[float, float] = Field((0.9, 0.99), description="weights of the past in Adam's two means")
    weight_decay: float = Field(0.1, ge=0, description="how strongly matrices are pulled to 0; vectors are not")

    def build(self, model: LanguageModel) -> torch.optim.Optimizer:
        kind = torch.optim.AdamW if self.kind == "adamw" else torch.optim.Adam
        parameters = groups(model.parameters(), self.weight_decay)
        return kind(parameters, lr=self.learning_rate, betas=self.betas, fused=True)

    def build_by_rows(self, model: LanguageModel, tables: Sequence[Tensor]) -> torch.optim.Optimizer:
        """AdamW under which only the rows of `tables` move that a batch used."""
        parameters = groups(model.parameters(), self.weight_decay)
        return RowAdamW(parameters, tables, lr=self.learning_rate, betas=self.betas, fused=True)


class SGDConfig(Config):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="the highest one, reached after the warm-up"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="weight of the past in the direction")
    weight_decay: float = Field(0.0, ge=0, description="how strongly matrices are pulled to 0; vectors are not")

    def build(self, model: LanguageModel) -> torch.optim.Optimizer:
        parameters = groups(model.parameters(), self.weight_decay)
        return torch.optim.SGD(parameters, lr=self.learning_rate, momentum=self.momentum)


class MuonConfig(Config):
    """Muon for the matrices of the layers, AdamW for the rest; see `training.muon`."""

    kind: Literal["muon"] = "muon"
    learning_rate: float = Field(
        1e-3, gt=0, allow_inf_nan=False, description="the highest one, reached after the warm-up"
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="weight of the past in the direction")
    betas: tuple[float, float] = Field((0.9, 0.99), description="weights of the past in Adam's two means")
    weight_decay: float = Field(0.1, ge=0, description="how strongly matrices are pulled to 0; vectors are not")

    def build(self, model: LanguageModel) -> torch.optim.Optimizer:
        return self.build_by_rows(model, ())

    def build_by_rows(self, model: LanguageModel, tables: Sequence[Tensor]) -> torch.optim.Optimizer:
        """The same, where only the rows of `tables` move that a batch used."""
        inside = {id(weight) for weight in inner(model)}
        others = groups((p for p in model.parameters() if id(p) not in inside), self.weight_decay)
        adam = RowAdamW(others, tables, lr=self.learning_rate, betas=self.betas, fused=True)
        muon = Muon(inner(model), lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)
        return Together(muon, adam)


OptimizerConfig = Annotated[AdamConfig | SGDConfig | MuonConfig, Field(discriminator="kind")]


def groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Those parameters that learn, in two groups: vectors (biases, gains) do not decay."""
    every = [parameter for parameter in parameters if parameter.requires_grad]
    matrices: dict[str, Any] = {"params": [p for p in every if p.ndim >= 2], "weight_decay": weight_decay}
    vectors: dict[str, Any] = {"params": [p for p in every if p.ndim < 2], "weight_decay": 0.0}
    return [group for group in (matrices, vectors) if group["params"]]


def inner(model: LanguageModel) -> list[Tensor]:
    """The matrices between the tables of words and the head."""
    outer = {id(table.weight) for table in model.modules() if isinstance(table, nn.Embedding)} | {id(model.head.weight)}
    learning = (weight for weight in model.parameters() if weight.requires_grad)
    return [weight for weight in learning if weight.ndim == 2 and id(weight) not in outer]


class Schedule(Config):
    """How the learning rate moves: up over the first steps, then down with the share of the budget that is spent.

    The way down follows the budget (minutes, steps or epochs), so it ends where training ends. The way up is counted in
    steps, because what it protects, the optimiser's young moments, ages in steps: a share of a short time may be gone
    before the first step is.
    """

    warmup: int = Field(100, ge=0, description="steps in which the rate rises from 0")

    def share(self, spent: float, step: int, drops: int = 0) -> float:
        """The share of the full rate for step number `step` (from 1), with `spent` in [0, 1] of the budget spent
        before it, after `drops` plateaus."""
        rise = min(1.0, step / self.warmup) if self.warmup else 1.0
        return rise * self.after(min(spent, 1.0), step, drops)

    def after(self, spent: float, step: int, drops: int) -> float:
        """The share without the warm-up."""
        return 1.0


class ConstantSchedule(Schedule):
    """The rate stays where it is."""

    kind: Literal["constant"] = "constant"


class CosineSchedule(Schedule):
    """Down in half a wave of the cosine: Loshchilov and Hutter 2017, eq. 5, without restarts."""

    kind: Literal["cosine"] = "cosine"
    floor: float = Field(0.05, ge=0, le=1, description="share of the rate that is left at the end")

    def after(self, spent: float, step: int, drops: int) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * spent)) / 2


class LinearSchedule(Schedule):
    """Down in a straight line."""

    kind: Literal["linear"] = "linear"
    floor: float = Field(0.05, ge=0, le=1, description="share of the rate that is left at the end")

    def after(self, spent: float, step: int, drops: int) -> float:
        return 1 - (1 - self.floor) * spent


class InverseSqrtSchedule(Schedule):
    """Down with the root of the steps alone: Vaswani et al. 2017, eq. 3."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"

    def after(self, spent: float, step: int, drops: int) -> float:
        return math.sqrt(max(1, self.warmup) / max(1, self.warmup, step))


class WSDSchedule(Schedule):
    """Warm-up, stable, decay: Hu et al. 2024, MiniCPM, section 4."""

    kind: Literal["wsd"] = "wsd"
    floor: float = Field(0.05, ge=0, le=1, description="share of the rate that is left at the end")
    decay: float = Field(0.2, gt=0, le=1, description="share of the budget in which the rate falls")

    def after(self, spent: float, step: int, drops: int) -> float:
        return 1 - (1 - self.floor) * max(0.0, (spent - (1 - self.decay)) / self.decay)


class PlateauSchedule(Schedule):
    """The rate falls when the validation loss does not."""

    kind: Literal["plateau"] = "plateau"
    floor: float = Field(0.01, ge=0, le=1, description="share of the rate below which it does not fall")
    factor: float = Field(0.5, gt=0, lt=1, description="what the rate is multiplied by")
    patience: int = Field(1, ge=0, description="evaluations in a row that may bring no improvement before it is")

    def after(self, spent: float, step: int, drops: int) -> float:
        return max(self.floor, self.factor**drops)


ScheduleConfig = Annotated[
    ConstantSchedule | CosineSchedule | LinearSchedule | InverseSqrtSchedule | WSDSchedule | PlateauSchedule,
    Field(discriminator="kind"),
]
