"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from textwright.config import Config


class OptimizerConfig(Config):
    """AdamW (Loshchilov and Hutter 2019), Adam (Kingma and Ba 2015), or SGD with momentum."""

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.1, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """An optimiser over the model's parameters; vectors (biases, gains) do not decay."""
        parameters = list(model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self.kind == "sgd":
            return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum)
        kind = torch.optim.AdamW if self.kind == "adamw" else torch.optim.Adam
        return kind(groups, lr=self.learning_rate, betas=self.betas, fused=True)


class ScheduleConfig(Config):
    """How the learning rate moves, as a function of the share of the budget that is spent.

    Because it follows the budget (minutes, steps or epochs), it ends where training ends.
    """

    kind: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd", "plateau"] = "cosine"
    warmup: float = Field(0.02, ge=0, lt=1, description="share of the budget in which the rate rises from 0")
    floor: float = Field(0.05, ge=0, le=1, description="share of the rate that is left at the end")
    decay: float = Field(0.2, gt=0, le=1, description="wsd: share of the budget in which the rate falls")
    factor: float = Field(0.5, gt=0, lt=1, description="plateau: what the rate is multiplied by")
    patience: int = Field(1, ge=0, description="plateau: evaluations without improvement before it is")

    def share(self, progress: float, drops: int = 0) -> float:
        """The share of the full learning rate at `progress` in [0, 1] of the budget, after `drops` plateaus."""
        if progress < self.warmup:
            return progress / self.warmup
        after = (progress - self.warmup) / (1 - self.warmup)
        if self.kind == "cosine":
            return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * after)) / 2
        if self.kind == "linear":
            return 1 - (1 - self.floor) * after
        if self.kind == "inverse_sqrt":  # Vaswani et al. 2017, eq. 3, in shares of the budget
            return math.sqrt(self.warmup / progress) if self.warmup else 1 / math.sqrt(1 + 99 * progress)
        if self.kind == "wsd":  # warm-up, stable, decay: Hu et al. 2024
            falling = max(0.0, (progress - (1 - self.decay)) / self.decay)
            return 1 - (1 - self.floor) * falling
        if self.kind == "plateau":
            return max(self.floor, self.factor**drops)
        return 1.0
