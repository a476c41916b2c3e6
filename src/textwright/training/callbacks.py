"""Who is told what happens in training. Printing, sampling and logging are handed in from above, as a listener."""

from __future__ import annotations

from pathlib import Path

from textwright.errors import MissingExtraError
from textwright.models.base import LanguageModel
from textwright.training.records import EvaluationRecord, Progress, StepRecord


class Listener:
    """Told of everything, does nothing: the base of those that do."""

    def started(self, progress: Progress) -> None:
        """Training begins, or goes on after `progress.step` steps."""

    def stepped(self, progress: Progress, record: StepRecord) -> None:
        """A step was logged."""

    def evaluated(self, progress: Progress, record: EvaluationRecord) -> None:
        """The validation text was looked at."""

    def notice(self, text: str) -> None:
        """Something a person should know: a skipped batch, a split one."""

    def interrupted(self, progress: Progress) -> None:
        """Somebody asked to stop; the state is saved."""

    def sample(self, model: LanguageModel) -> str:
        """A text written by the model as it is now, for the record of an evaluation."""
        return ""


class TensorBoard(Listener):
    """Curves for TensorBoard, in `folder`. Needs the extra of that name."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("TensorBoard logging", "tensorboard") from None
        self.writer = SummaryWriter(str(folder))

    def stepped(self, progress: Progress, record: StepRecord) -> None:
        self._write({"loss/train": record.loss, "learning_rate": record.learning_rate}, record.step)
        self._write({"gradient_norm/all": record.gradient_norm}, record.step)
        self._write({f"gradient_norm/{name}": norm for name, norm in record.layers.items()}, record.step)

    def evaluated(self, progress: Progress, record: EvaluationRecord) -> None:
        self._write({"loss/valid": record.valid_loss}, record.step)
        if record.sample:
            self.writer.add_text("sample", record.sample, record.step)
        self.writer.flush()

    def _write(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


class Listeners(Listener):
    """Several listeners as one; the first sample that is not empty counts."""

    def __init__(self, *listeners: Listener) -> None:
        self.all = listeners

    def started(self, progress: Progress) -> None:
        for listener in self.all:
            listener.started(progress)

    def stepped(self, progress: Progress, record: StepRecord) -> None:
        for listener in self.all:
            listener.stepped(progress, record)

    def evaluated(self, progress: Progress, record: EvaluationRecord) -> None:
        for listener in self.all:
            listener.evaluated(progress, record)

    def notice(self, text: str) -> None:
        for listener in self.all:
            listener.notice(text)

    def interrupted(self, progress: Progress) -> None:
        for listener in self.all:
            listener.interrupted(progress)

    def sample(self, model: LanguageModel) -> str:
        return next(filter(None, (listener.sample(model) for listener in self.all)), "")
