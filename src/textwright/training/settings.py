"""Configuration of a training run. What a user leaves open is resolved before training and stored resolved."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from textwright.config import Config
from textwright.training.optimizer import AdamConfig, CosineSchedule, OptimizerConfig, ScheduleConfig


class Budget(Config):
    """How long to train: exactly one of the three."""

    minutes: float | None = Field(
        None, gt=0, description="of training, looks and saves in between included; the last ones come after"
    )
    steps: int | None = Field(None, gt=0, description="of the optimiser")
    epochs: float | None = Field(None, gt=0, description="passes over the data")

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of minutes, steps and epochs, not {' and '.join(given) or 'none'}")
        return self

    def share(self, *, seconds: float, steps: int, epochs: float) -> float:
        """The part of the budget that is spent, at least 1 when it is gone."""
        if self.minutes is not None:
            return seconds / (60 * self.minutes)
        if self.steps is not None:
            return steps / self.steps
        assert self.epochs is not None
        return epochs / self.epochs

    def __str__(self) -> str:
        return next(f"{value:g} {name}" for name, value in self if value is not None)


class NoAveraging(Config):
    """Evaluate and keep the weights themselves."""

    kind: Literal["none"] = "none"


class EMAAveraging(Config):
    """Evaluate and keep an exponential moving average of the weights (Polyak and Juditsky 1992)."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(0.999, gt=0, lt=1, description="weight of the past at each step")


class TailAveraging(Config):
    """Evaluate and keep the mean of the weights over the last part of the budget (Izmailov et al. 2018)."""

    kind: Literal["tail"] = "tail"
    tail: float = Field(0.25, gt=0, le=1, description="share of the budget that is averaged")


class TriggeredAveraging(Config):
    """Evaluate and keep the mean of the weights since the validation loss stopped falling: NT-ASGD (Merity et al. 2018,
    algorithm 1), for a rate that stays high."""

    kind: Literal["triggered"] = "triggered"
    patience: int = Field(
        5, ge=1, description="it begins when a loss is above the best of those before the last so many"
    )


AveragingConfig = Annotated[
    NoAveraging | EMAAveraging | TailAveraging | TriggeredAveraging, Field(discriminator="kind")
]


class TrainingConfig(Config):
    """Of every task."""

    budget: Budget
    batch_tokens: int = Field(8192, gt=0, description="tokens in the global batch")
    accumulation: int = Field(1, ge=1, description="micro-batches a batch is split into: less memory, the same loss")
    optimizer: OptimizerConfig = Field(default_factory=AdamConfig)
    schedule: ScheduleConfig = Field(default_factory=CosineSchedule)
    averaging: AveragingConfig = Field(default_factory=NoAveraging)
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of a target that all tokens get (Szegedy et al. 2016)"
    )
    r_drop: float = Field(
        0.0,
        ge=0,
        description="with a source: weight of the distance of two passes with other dropout (Liang et al. 2021)",
    )
    scheduled_sampling: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="with a source: share of tokens read that are its own guesses, at the end; it grows",
    )
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0: no clipping")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of products; weights stay in float32")
    device: str = Field("cpu", description="cpu, cuda, cuda:1 …")
    compile: bool = Field(
        False, description="Transformers that go on writing a text: their blocks by torch.compile; for GPUs"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, order and dropout")
    evaluations: int = Field(10, ge=1, description="looks at the validation text, evenly over the budget")
    keep: Literal["loss", "score"] = Field(
        "loss", description="the best weights: of the lowest loss, or with a source of the best score"
    )
    patience: int = Field(0, ge=0, description="stop after so many evaluations without improvement; 0: never")
    log_every: int = Field(10, ge=1, description="steps between records of the history")
    save_seconds: float = Field(60.0, ge=0, description="least time between saves of the training state")


class TextTraining(TrainingConfig):
    """Of texts that go on: they are cut into rows."""

    context: int = Field(256, gt=0, description="tokens a row is trained on at once")
    varied_context: bool = Field(False, description="recurrent models: batches of different lengths around context")
    softmax_samples: int = Field(
        0, ge=0, description="words that the softmax is estimated from in training, for large vocabularies; 0: all"
    )
    embedding: Literal["random", "cooccurrence"] = Field(
        "random", description="what the embedding begins as: vectors at random, or from what stands around each word"
    )
    calibrate: bool = Field(
        False,
        description="recurrent models: before a look, two numbers of the softmax are fitted to the validation text",
    )
