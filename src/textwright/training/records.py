"""What training remembers and tells: the saved progress, and the records of its history."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from textwright.config import Config
from textwright.text.batching import Cursor
from textwright.training.calibration import Calibration


class StepRecord(Config):
    """One logged step: means since the record before."""

    step: int
    epoch: int
    share: float  # of the budget that is spent after it
    loss: float  # nats a token, without smoothing and penalties
    learning_rate: float
    gradient_norm: float  # before clipping
    layers: dict[str, float]  # gradient norm of each layer
    tokens: int  # targets seen since the beginning
    seconds: float


class Look(NamedTuple):
    """What validation gives: the mean loss (nats a token) and, for tasks that have one, a score; higher is better."""

    loss: float
    score: float | None = None


class EvaluationRecord(Config):
    """One look at the validation text."""

    step: int
    epoch: int
    share: float  # of the budget that was spent
    valid_loss: float  # nats a token
    valid_score: float | None = None  # the task's own metric, higher is better
    train_loss: float | None  # mean since the evaluation before
    tokens: int
    plain: int | None = None  # see Progress
    seconds: float
    best: bool
    calibration: Calibration | None = None  # of the model that was looked at
    sample: str = ""

    @property
    def seen(self) -> int:
        """Targets so far, as the corpus counts them."""
        return self.tokens if self.plain is None else self.plain


class Progress(Config):
    """Everything a run needs to go on exactly where it was, besides tensors."""

    step: int = 0
    tokens: int = 0
    plain: int | None = None  # the same as the corpus counts them; None in runs of older versions
    seconds: float = 0.0
    cursor: Cursor = Field(default_factory=Cursor)
    best_loss: float | None = None
    best_score: float | None = None
    best_step: int = 0
    waits: int = 0  # evaluations since the best one
    stalls: int = 0  # evaluations since the best one or the last drop
    drops: int = 0  # times a plateau lowered the rate
    forget: bool = False  # a batch was skipped: carried states do not fit the next one
    easing: float = 1.0  # what roll-backs multiplied the rate by
    parts: int = 1  # micro-batches a batch is split into
    log_loss: float = 0.0  # sum since the last log
    log_tokens: int = 0
    evaluation_loss: float = 0.0  # sum since the last evaluation
    evaluation_tokens: int = 0
    finished: str = ""  # why training ended; empty while it may go on
    steps: tuple[StepRecord, ...] = ()
    evaluations: tuple[EvaluationRecord, ...] = ()

    @property
    def seen(self) -> int:
        """Targets so far, as the corpus counts them."""
        return self.tokens if self.plain is None else self.plain
