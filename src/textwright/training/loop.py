"""The training loop: steps, accumulation, checks, evaluations, saves; it ends with its budget and resumes exactly.

Nothing that influences the result lives outside `Progress` and the saved tensors: batches are a function of a cursor,
the random numbers of a step (dropout) of seed, step and rank. Killing the process at any moment and starting it again
therefore continues with bit-equal losses on the same kind of machine. (With a budget in minutes the clock decides about
the rate and the end, so there the losses are those of a run that was never killed, but not the same bits. Nor are
they where blocks are compiled: which shapes they are compiled for depends on what came before.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textwright.errors import TrainingError
from textwright.models.base import LanguageModel, renewed
from textwright.models.state import State, map_leaves
from textwright.noise import below
from textwright.text.batching import Batch, Batches, Cursor
from textwright.training import state as saves
from textwright.training.ahead import Supply, ahead
from textwright.training.averaging import average_of, triggered
from textwright.training.calibration import Calibration
from textwright.training.callbacks import Listener
from textwright.training.compiling import uncompiled
from textwright.training.forensics import blame, finite
from textwright.training.gradients import clip, layer_norms
from textwright.training.hardware import autocast
from textwright.training.interrupts import Interrupts
from textwright.training.objective import Objective
from textwright.training.optimizer import SGDConfig
from textwright.training.parallel import World
from textwright.training.records import EvaluationRecord, Look, Progress, StepRecord
from textwright.training.sampled import Sampler
from textwright.training.settings import TrainingConfig

SPENT = "the budget is spent"
LIMIT = 3  # rejected steps in a row before training rolls back, and roll-backs before it gives up

Begin = Callable[[LanguageModel], None]
Calibrate = Callable[[LanguageModel], tuple[LanguageModel, Calibration | None]]
Validate = Callable[[LanguageModel], Look]
Keep = Callable[[LanguageModel], None]


class OutOfMemory(Exception):
    """A micro-batch did not fit."""


class Trainer:
    """One run.

    Args:
        config: resolved settings.
        model: on its device.
        batches: endless supply of global batches.
        corpus_tokens: targets in one epoch, for budgets in epochs.
        folder: where the training state is saved; the newest save there is resumed.
        validate: looks at the validation text with a model in evaluation mode; called in the first process.
        calibrate: makes the model that is looked at and kept, which may be the one it is given; called in the first
            process.
        keep: saves a model that is the best so far; called in the first process.
        listener: is told what happens.
        world: all processes of the run.
        sampler: estimates the softmax in training.
        begin: prepares a new model before the first step; called in the first process, the others take its weights.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: LanguageModel,
        batches: Batches,
        corpus_tokens: int,
        folder: Path,
        *,
        validate: Validate,
        calibrate: Calibrate,
        keep: Keep,
        listener: Listener,
        world: World,
        sampler: Sampler | None = None,
        begin: Begin | None = None,
    ) -> None:
        self.config, self.corpus_tokens, self.folder = config, corpus_tokens, folder
        self.validate, self.keep, self.listener, self.world = validate, keep, listener, world
        self.batches, self.calibrate, self.begin = batches, calibrate, begin
        self.objective = Objective(model, config.label_smoothing, config.r_drop, sampler)
        self.wrapped = world.wrap(self.objective)
        self.tensors = saves.Tensors(model, self._optimizer(model, sampler), average_of(model, config.averaging))
        self.progress = Progress(parts=config.accumulation)
        self.rejected = 0
        self._saved_at = self._began = time.monotonic()

    def run(self) -> Progress:
        """Train until the budget is spent, patience is out, or somebody interrupts; returns the saved progress."""
        self.tensors.model.train()
        self._resume()
        supply = self._supply()
        with Interrupts() as interrupts:
            while not self.progress.finished:
                share, stop = self.world.agree([self._share(), float(interrupts.requested)])
                if stop:
                    self._save()
                    self.listener.interrupted(self.progress)
                    break
                if share >= 1 or self._due(share):
                    sound = self._evaluate(share)
                else:
                    sound = self._step(share, *next(supply)) and self._maybe_save()
                if not sound:  # rolled back, and the supply with it
                    supply = self._supply()
        return self.progress

    def _supply(self) -> Supply:
        supply = self.batches.batches(self.progress.cursor)
        # Of several processes each takes some rows of a batch, which do not lie together: nothing to pin.
        alone = self.tensors.model.device.type == "cuda" and self.world.size == 1
        return ahead(supply, Batch.pinned) if alone else supply

    def _plainly(self) -> AbstractContextManager[object]:
        return uncompiled() if self.config.compile else nullcontext()

    # -- the parts of a step ------------------------------------------------------------------------------------

    def _step(self, share: float, batch: Batch, cursor: Cursor) -> bool:
        """One optimiser step; False when training was rolled back."""
        rate = self._rate(share) * batch.share
        self.objective.sampled = self.config.scheduled_sampling * share
        for group in self.tensors.optimizer.param_groups:
            group["lr"] = rate
        losses, after = self._gradients(batch)
        record = self.progress.step == 0 or (self.progress.step + 1) % self.config.log_every == 0
        layers = layer_norms(self.tensors.model) if record else {}  # before they are clipped
        norm = clip(self.tensors.model, self.config.clip)
        if not (torch.isfinite(losses).all() and torch.isfinite(norm)):
            return self._reject(batch, cursor)
        self.rejected = 0
        with autocast(self.tensors.model.device, self.config.precision):  # an update may have products, too: Muon's
            self.tensors.optimizer.step()
        self.tensors.carried = None if after is None else after.detach()
        self._update_average(share)
        self._count(float(losses[1]), batch, cursor)
        if record:
            self._log(rate, float(norm), layers)
        return True

    def _count(self, loss: float, batch: Batch, cursor: Cursor) -> None:
        before, tokens = self.progress, batch.count
        self._set(
            step=before.step + 1,
            tokens=before.tokens + tokens,
            plain=before.seen + (tokens if batch.plain is None else batch.plain),
            seconds=self._seconds(),
            cursor=cursor,
            forget=False,
            log_loss=before.log_loss + loss,
            log_tokens=before.log_tokens + tokens,
            evaluation_loss=before.evaluation_loss + loss,
            evaluation_tokens=before.evaluation_tokens + tokens,
        )

    def _set(self, **changes: Any) -> None:
        self.progress = self.progress.model_copy(update=changes)

    def _gradients(self, batch: Batch) -> tuple[Tensor, State | None]:
        """Gradients of the mean loss over the global batch; gives the global sums (2,) of what is minimised and of the
        plain loss, and the state after."""
        total = batch.count
        own = batch.rows(self.world.rank, None, self.world.size).to(self.tensors.model.device)
        while True:
            self._reseed()
            self.tensors.optimizer.zero_grad(set_to_none=True)
            try:
                losses, after = self._accumulate(own, total)
                return self.world.total(losses), after
            except OutOfMemory:
                self._split(len(own.tokens))

    def _reseed(self) -> None:
        torch.manual_seed(below(2**62, self.config.seed, self.progress.step, self.world.rank))

    def _accumulate(self, batch: Batch, total: int) -> tuple[Tensor, State | None]:
        rows = len(batch.tokens)
        size = -(-rows // min(self.progress.parts, rows))
        losses, after = torch.zeros(2, dtype=torch.float64), None
        for start in range(0, rows, size):
            part = batch.rows(start, start + size)
            last = start + size >= rows
            with nullcontext() if last or self.world.size == 1 else self.wrapped.no_sync():  # type: ignore[operator]
                part_losses, state = self._backward(part, self._carried(part, start, rows), total)
            losses += part_losses
            after = state if after is None or state is None else after.concat(state)
        return losses, after

    def _backward(self, part: Batch, state: State | None, total: int) -> tuple[Tensor, State | None]:
        model = self.tensors.model
        try:
            with autocast(model.device, self.config.precision):
                loss, plain, after = self.wrapped(part, state)
            # The wrapper averages over processes; the gradient wanted is that of the sum over all ÷ all targets.
            (loss * (self.world.size / total)).backward()
        except (RuntimeError, MemoryError) as error:
            if not is_memory(error):
                raise
            raise OutOfMemory from None
        return torch.stack([loss.detach(), plain]).cpu().double(), None if after is None else after.detach()

    def _carried(self, part: Batch, start: int, rows: int) -> State | None:
        """The state that the part's rows go on from: fresh rows begin anew; None for windows."""
        if part.fresh is None:
            return None
        before, stop = None if self.progress.forget else self.tensors.carried, start + len(part.fresh)
        if before is not None and stop - start < rows:
            before = map_leaves(lambda leaf: leaf[start:stop], before)
        return renewed(self.tensors.model, before, part.fresh)

    def _split(self, rows: int) -> None:
        """Out of memory: smaller micro-batches, the same optimisation."""
        parts = self.progress.parts * 2
        if self.world.size > 1:
            raise TrainingError(f"out of memory in one of several processes: set training.accumulation={parts}")
        if parts >= 2 * rows:
            raise TrainingError("out of memory even with one row at a time: use a smaller model or training.context")
        self._set(parts=parts)
        self.listener.notice(f"Out of memory: each batch is now split into {parts} parts; its loss stays the same.")

    # -- numbers that are not finite -----------------------------------------------------------------------------

    def _reject(self, batch: Batch, cursor: Cursor) -> bool:
        """Skip a step whose loss or gradient is not finite; roll back when the weights themselves are broken."""
        part = batch.rows(self.world.rank, None, self.world.size).to(self.tensors.model.device)
        with self._plainly():
            where = blame(self.tensors.model, lambda: self._again(part))
        self.tensors.optimizer.zero_grad(set_to_none=True)
        self.rejected += 1
        place = f"step {self.progress.step + 1}, epoch {cursor.epoch + 1}, batch after {self.progress.tokens:,} tokens"
        if where.startswith("weight") or self.rejected >= LIMIT:
            self._roll_back(where, place)
            return False
        self.listener.notice(f"Not finite: {where} ({place}). The batch is skipped; no weight was changed.")
        self._set(cursor=cursor, seconds=self._seconds(), forget=True)
        return True

    def _again(self, part: Batch) -> None:
        """The forward pass of this step once more, with the same dropout (unless it was compiled) and precision."""
        self._reseed()
        with autocast(self.tensors.model.device, self.config.precision):
            self.objective(part, self._carried(part, 0, len(part.tokens)))

    def _broken(self, loss: float = 0.0) -> str:
        """The first weight that is not finite (an update may overflow), or a validation loss that is not; else ""."""
        for name, parameter in self.tensors.model.named_parameters():
            if not finite(parameter):
                return f"weight {name}"
        return "" if math.isfinite(loss) else "the validation loss"

    def _roll_back(self, where: str, place: str) -> None:
        """To the last save, at half the rate."""
        easing = self.progress.easing / 2
        path = saves.newest(self.folder)
        if path is None or easing < 0.5**LIMIT:
            raise TrainingError(
                f"training diverged: not finite at {where} ({place}), also after {LIMIT} roll-backs. The last good "
                f"state is saved. Start anew with a lower rate: --set training.optimizer.learning_rate="
                f"{self.config.optimizer.learning_rate / 10:g} and another --out"
            )
        seconds = self._seconds()  # the time is spent all the same
        self._load(path)
        self._set(easing=easing, seconds=seconds)
        self._began = time.monotonic() - seconds
        self.rejected = 0
        if self.world.first:  # a run that is killed now does not begin with the old rate
            saves.save(self.folder, self.progress, self.tensors)
        self.listener.notice(
            f"Not finite: {where} ({place}). Rolled back to step {self.progress.step}; the learning rate is halved."
        )

    # -- looking, telling, saving --------------------------------------------------------------------------------

    def _evaluate(self, share: float) -> bool:
        """Look at the validation text, keep the best model, save; False when training was rolled back."""
        with self._plainly():
            return self._look(share)

    def _look(self, share: float) -> bool:
        candidate = model = self._candidate()
        candidate.eval()
        broken, fitted = self._broken(), None
        if self.world.first and not broken:
            model, fitted = self.calibrate(candidate)
        look = self.validate(model) if self.world.first and not broken else Look(0.0)
        numbers = [look.loss, float(look.score is not None), look.score or 0.0, self._seconds()]
        loss, scored, score, seconds = self.world.agree(numbers)  # seconds, because the next look is due by them
        look = Look(loss, score if scored else None)
        if broken := broken or self._broken(loss):
            candidate.train()
            self._roll_back(broken, f"step {self.progress.step}")
            return False
        before, best = self.progress, self._best(look)
        record = EvaluationRecord(
            step=before.step,
            epoch=before.cursor.epoch,
            share=share,
            valid_loss=loss,
            valid_score=look.score,
            train_loss=before.evaluation_loss / before.evaluation_tokens if before.evaluation_tokens else None,
            tokens=before.tokens,
            plain=before.plain,
            seconds=seconds,
            best=best,
            calibration=fitted,
            sample=self.listener.sample(model) if self.world.first else "",
        )
        if best and self.world.first:
            self.keep(model)
        candidate.train()
        self._after_evaluation(record)
        self.listener.evaluated(self.progress, record)
        self._save()
        return True

    def _best(self, look: Look) -> bool:
        """Better than every look before, by what the configuration keeps weights for."""
        before = self.progress
        if before.best_loss is None:
            return True
        if self.config.keep == "loss" or look.score is None:
            return look.loss < before.best_loss
        if before.best_score is None:  # the first look, before training, has no score
            return True
        return (look.score, -look.loss) > (before.best_score, -before.best_loss)

    def _after_evaluation(self, record: EvaluationRecord) -> None:
        before = self.progress
        waits, stalls = (0, 0) if record.best else (before.waits + 1, before.stalls + 1)
        if record.best:
            self._set(best_loss=record.valid_loss, best_score=record.valid_score, best_step=record.step)
        if self.config.schedule.kind == "plateau" and stalls > self.config.schedule.patience:
            self._set(drops=before.drops + 1)
            stalls = 0
        self._set(waits=waits, stalls=stalls)
        finished = SPENT if record.share >= 1 else ""
        if not finished and self.config.patience and waits >= self.config.patience:
            finished = f"no improvement in {waits} evaluations"
        evaluations = (*before.evaluations, record)
        self._set(finished=finished, evaluations=evaluations, evaluation_loss=0.0, evaluation_tokens=0)

    def _log(self, rate: float, norm: float, layers: dict[str, float]) -> None:
        before = self.progress
        record = StepRecord(
            step=before.step,
            epoch=before.cursor.epoch,
            share=self._share(),
            loss=before.log_loss / before.log_tokens,
            learning_rate=rate,
            gradient_norm=norm,
            layers=layers,
            tokens=before.tokens,
            seconds=before.seconds,
        )
        self._set(log_loss=0.0, log_tokens=0, steps=(*before.steps, record))
        self.listener.stepped(self.progress, record)

    def _maybe_save(self) -> bool:
        """Save when it is time to; False when training was rolled back."""
        (due,) = self.world.agree([float(time.monotonic() - self._saved_at >= self.config.save_seconds)])
        if due and (broken := self._broken()):
            self._roll_back(broken, f"step {self.progress.step}")
            return False
        if due:
            self._save()
        return True

    def _save(self) -> None:
        self._set(seconds=self._seconds())  # a look may have taken some since the last step
        own = self.tensors.carried
        self.tensors.carried = self.world.join_rows(own)
        if self.world.first:
            saves.save(self.folder, self.progress, self.tensors)
        self.tensors.carried = own
        self.world.barrier()
        self._saved_at = time.monotonic()

    def _resume(self) -> None:
        path = saves.newest(self.folder)
        (fresh,) = self.world.agree([float(path is None)])  # before the first process writes anything
        self._began = time.monotonic()
        if fresh or path is None:
            self._begin_anew()
            self._save()
        else:
            self._load(path)
            self._began -= self.progress.seconds
        self.listener.started(self.progress)

    def _begin_anew(self) -> None:
        """What is done to a new model costs time of the budget, as its steps do."""
        if self.begin is None:
            return
        self.listener.notice("Preparing the new model from the text: this counts towards the budget.")
        if self.world.first:
            self.begin(self.tensors.model)
        self.world.spread(self.tensors.model)

    def _load(self, path: Path) -> None:
        self.progress = saves.load(path, self.tensors)
        self._set(parts=max(self.progress.parts, self.config.accumulation))
        self.tensors.carried = self.world.own_rows(self.tensors.carried)
        seen = self.progress.seconds, self.progress.step, self.progress.seen
        if self.progress.finished == SPENT and self._share_of(*seen) < 1:  # the budget was enlarged
            self._set(finished="")
            if self.tensors.average is not None and self.config.averaging.kind == "tail":
                self.tensors.average.n_averaged.zero_()

    # -- time, rate, average -------------------------------------------------------------------------------------

    def _seconds(self) -> float:
        """Seconds of training so far, those before a resume included."""
        return time.monotonic() - self._began

    def _share(self) -> float:
        return self._share_of(self._seconds(), self.progress.step, self.progress.seen)

    def _share_of(self, seconds: float, steps: int, seen: int) -> float:
        return self.config.budget.share(seconds=seconds, steps=steps, epochs=seen / self.corpus_tokens)

    def _due(self, share: float) -> bool:
        """An evaluation lies between the last one and `share`, and so does a step."""
        if not self.progress.evaluations:
            return True  # before training: what it is compared with
        record = self.progress.evaluations[-1]
        if record.step == self.progress.step:
            return False
        last = self._share_of(record.seconds, record.step, record.seen)  # the budget may have been enlarged since
        return int(share * self.config.evaluations) > int(last * self.config.evaluations)

    def _rate(self, share: float) -> float:
        progress = self.progress
        factor = self.config.schedule.share(share, progress.step + 1, progress.drops)
        return self.config.optimizer.learning_rate * factor * progress.easing

    def _optimizer(self, model: LanguageModel, sampler: Sampler | None) -> torch.optim.Optimizer:
        """Where the softmax is estimated from samples, a batch uses few rows of the tables of words."""
        config = self.config.optimizer
        if sampler is None or isinstance(config, SGDConfig) or config.kind == "adam":
            return config.build(model)
        model.embed.sparse = sampler.sparse = self.world.size == 1  # processes exchange dense gradients
        return config.build_by_rows(model, [model.embed.weight, model.head.weight])

    def _update_average(self, share: float) -> None:
        averaging, average = self.config.averaging, self.tensors.average
        if average is None or (averaging.kind == "tail" and share < 1 - averaging.tail):
            return
        if averaging.kind == "triggered" and not triggered(self.progress.evaluations, averaging.patience):
            return
        average.update_parameters(self.tensors.model)

    def _candidate(self) -> LanguageModel:
        """The model to evaluate and keep: the average of weights, once there is one."""
        average = self.tensors.average
        if average is None or int(average.n_averaged) == 0:
            return self.tensors.model
        assert isinstance(average.module, LanguageModel)
        return average.module


def is_memory(error: BaseException) -> bool:
    words = str(error)
    told = "can't allocate memory" in words or "out of memory" in words
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)
