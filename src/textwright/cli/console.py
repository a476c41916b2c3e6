"""What a person sees while a model is trained: a plan, a moving line, a row for every evaluation, a verdict."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from textwright.cli.watching import QUIET
from textwright.fit import Audience, Outcome
from textwright.job import Job
from textwright.models import LanguageModel
from textwright.run import Manifest
from textwright.training import hardware
from textwright.training.loop import SPENT
from textwright.training.records import EvaluationRecord, StepRecord
from textwright.training.records import Progress as Training

FRAME = 0.1  # seconds between movements of a bar
SHAPE = ("width", "layers", "heads", "window", "dropout")  # of a model, in its line
SHOWN = 300  # characters of a sample


class Patient(Console):
    """A console whose reader may leave: training goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ConsoleAudience(Audience):
    """Prints to standard output; on a terminal with a line that moves, elsewhere with a line every ten seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.console = Patient(highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.told = self.resumed_at = time.monotonic()
        self.tokens_before, self.unit = 0, "token"
        self.told_of: set[str] = set()
        self.done = self.whole = 0.0  # characters of this pass over the text, and of the longest one so far

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def preparing(self, what: str, characters: float) -> None:
        now = time.monotonic()
        if what not in self.told_of:
            self.told_of.add(what)
            self._stop()
            self._say(f"{what} …", "dim")
            self.whole, self.told = max(self.whole, self.done), now
            if self.console.is_terminal:  # a first pass has no known end: its bar swings
                self._start(what, self.whole or None)
        elif self.bar is not None and self.task is not None and now - self.told >= FRAME:
            self.told = now
            self.bar.update(
                self.task, completed=characters, description=f"{what}, {characters / 1e6:,.1f} M characters"
            )
        elif self.bar is None and now - self.told >= QUIET:
            self.told = now
            of = f" of {self.whole / 1e6:,.0f}" if self.whole else ""
            self._say(f"{what}: {characters / 1e6:,.1f}{of} million characters", "dim")
        self.done = characters

    def planned(self, manifest: Manifest, model: LanguageModel, job: Job) -> None:
        self._stop()
        config, self.unit = manifest.config, manifest.config.unit
        training = config.training
        shape = ", ".join(f"{name} {value}" for name, value in config.model if name in SHAPE)
        self._say(f"{config.model.family}: {model.count_parameters():,} parameters ({shape})")
        self._say(job.describe())
        optimizer = training.optimizer
        self._say(
            f"training: {training.budget}, batches of {training.batch_tokens:,} tokens, {optimizer.kind} "
            f"{optimizer.learning_rate:g}, {training.schedule.kind}; {manifest.hardware}; into {self.folder}"
        )
        if training.precision == "bfloat16" and not hardware.has_bfloat16(model.device):
            self._say(f"The run was begun in bfloat16, but {hardware.WITHOUT_BFLOAT16}: it goes on in float32.")

    def started(self, progress: Training) -> None:
        self.resumed_at, self.tokens_before = time.monotonic(), progress.tokens
        if progress.finished:
            more = " Give a larger budget to go on." if progress.finished == SPENT else ""
            self._say(f"This run is complete ({progress.finished}).{more}")
        elif progress.step:
            self._say(f"Going on after step {progress.step:,}, {progress.tokens:,} {self.unit}s.")
        if self.console.is_terminal and not progress.finished:
            self._start("warming up", 1.0)

    def stepped(self, progress: Training, record: StepRecord) -> None:
        now = time.monotonic()
        speed = (record.tokens - self.tokens_before) / max(now - self.resumed_at, 1e-9)
        line = f"step {record.step:,}  loss {record.loss:.3f}  {speed:,.0f} {self.unit}s/s"
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, description=line, completed=record.share)
        elif now - self.told >= QUIET or record.step == 1:
            self.told = now
            self._say(f"{line}  {_remaining(record)}")

    def evaluated(self, progress: Training, record: EvaluationRecord) -> None:
        train = "" if record.train_loss is None else f"train {record.train_loss:.4f}  "
        score = "" if record.valid_score is None else f"  score {record.valid_score:.2f}"
        best = "  best so far" if record.best else f"  (best {progress.best_loss:.4f} at step {progress.best_step:,})"
        self._say(
            f"[step {record.step:,}, {record.seconds:,.0f} s]  {train}valid {record.valid_loss:.4f}{score}{best}",
            "bold",
        )
        self._say("  " + record.sample[:SHOWN].strip().replace("\n", "\n  "), "dim")

    def notice(self, text: str) -> None:
        self._say(text, "yellow")

    def interrupted(self, progress: Training) -> None:
        self._say(f"Stopped after step {progress.step:,}; everything is saved in {self.folder}.")
        self._say(f"To go on: {shlex.join(['textwright', *sys.argv[1:]])}")

    def measured(self, outcome: Outcome) -> None:
        self._stop()
        self._compare(outcome.progress)
        if outcome.measures:
            self._say(outcome.measures.table.text())
        self._say(outcome.verdict, "bold")
        self._say(f"Report: {outcome.folder / 'report.html'}")
        self._say(f"To write: {outcome.how}")

    def _compare(self, progress: Training) -> None:
        """What the model wrote before training, and with the weights that are kept."""
        first, kept = progress.evaluations[0], next(look for look in reversed(progress.evaluations) if look.best)
        for when, record in (("Before training", first), ("After training", kept)):
            self._say(f"\n{when} (validation loss {record.valid_loss:.3f}) it wrote:", "bold")
            self._say(record.sample.strip())
        self._say("")

    def _say(self, text: str, style: str = "") -> None:
        # Text, not markup: a sample may hold square brackets.
        self.console.print(Text(text, style=style))

    def _start(self, what: str, total: float | None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(20), TimeRemainingColumn(compact=True))
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.task = self.bar.add_task(what, total=total)
        self.bar.start()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _remaining(record: StepRecord) -> str:
    share = min(record.share, 1.0)
    return f"{share:.0%}, {record.seconds * (1 - share) / share / 60:.1f} minutes left"
