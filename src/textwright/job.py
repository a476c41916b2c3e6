"""What a run learns from and is judged by: the one thing in which tasks differ. `fit` knows nothing else of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from textwright.models import LanguageModel
from textwright.reporting import Section, Table
from textwright.run import PairRun, TextRun
from textwright.text.batching import Batches
from textwright.text.corpus import Progress
from textwright.training.calibration import Calibration
from textwright.training.hardware import Hardware
from textwright.training.loop import Begin
from textwright.training.parallel import World
from textwright.training.records import Look
from textwright.training.sampled import Sampler


class Measures(NamedTuple):
    """What was measured of a finished model.

    Attributes:
        facts: label and value of the figures that matter most.
        table: all of them, for a terminal.
        sections: the same and more, for the report.
    """

    facts: list[tuple[str, object]]
    table: Table
    sections: list[Section]


class Job(ABC):
    """The data of one run and everything that depends on its task.

    Attributes:
        requested: keys of the request that the prepared data depends on.
        epoch_tokens: targets in one epoch; pairs of answers, where these are counted.
        kinds: what its texts are made of, as in "4,096 (bpe)".
        comparable: training and validation loss are of the same tokens, read in the same way.
    """

    requested: ClassVar[tuple[str, ...]]
    epoch_tokens: int
    kinds: str
    comparable = True

    @classmethod
    def request(cls, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What the prepared data depends on."""
        return {key: asked[key] for key in cls.requested if key in asked}

    @staticmethod
    @abstractmethod
    def check(asked: Mapping[str, Any]) -> None:
        """Raise ConfigError for what cannot be, before any work is done."""

    @staticmethod
    @abstractmethod
    def fingerprint(asked: Mapping[str, Any]) -> str:
        """SHA-256 of the bytes of the training data; a missing file is told here."""

    @staticmethod
    @abstractmethod
    def prepare(asked: Mapping[str, Any], folder: Path, progress: Progress) -> None:
        """Read the data and write it into `folder` as token ids."""

    @staticmethod
    @abstractmethod
    def defaults(asked: Mapping[str, Any], folder: Path, hardware: Hardware, processes: int) -> dict[str, Any]:
        """A whole configuration for prepared data; what was asked for is put over it afterwards."""

    @staticmethod
    @abstractmethod
    def describe_run(config: TextRun | PairRun, data: Path, out: Path) -> None:
        """Write tokenizers and generation.json of a new run."""

    @abstractmethod
    def describe(self) -> str:
        """The data in a line."""

    @abstractmethod
    def sizes(self) -> list[tuple[str, object]]:
        """The data as label and value."""

    @abstractmethod
    def batches(self, model: LanguageModel, world: World) -> Batches:
        """What is trained on."""

    def sampler(self, device: torch.device) -> Sampler | None:
        """What estimates the softmax in training; None: nothing does."""
        return None

    def begin(self) -> Begin | None:
        """What prepares a new model for the data, within the budget; None: nothing does."""
        return None

    @abstractmethod
    def validate(self, model: LanguageModel, *, trained: bool) -> Look:
        """A look at the validation data; a shorter one while nothing was trained."""

    def calibrate(self, model: LanguageModel, *, trained: bool) -> tuple[LanguageModel, Calibration | None]:
        """The model that is looked at and kept, and how it was fitted to the validation data; None: it was not."""
        return model, None

    @abstractmethod
    def sample(self, model: LanguageModel) -> str:
        """What the model writes now."""

    @abstractmethod
    def use(self, out: Path) -> str:
        """The command that writes with a finished run."""

    @abstractmethod
    def measure(self, model: LanguageModel) -> Measures:
        """All figures of the final model."""
