"""The task of preferring one answer to another: see `training.preference`."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textwright.adapting.packed import rounded
from textwright.errors import ConfigError
from textwright.example_job import SPLITS, ExampleJob
from textwright.job import Measures
from textwright.models import LanguageModel
from textwright.reporting import Section, table
from textwright.run import ADAPTER, WEIGHTS, TextRun, read_run
from textwright.run_model import load_model
from textwright.text.batching import Batch, Batches, Contrast, by_length
from textwright.text.buckets import LengthBuckets
from textwright.text.corpus import Progress, mapped
from textwright.text.marked import REJECTED, Marked, MarkedBuckets, open_marked
from textwright.training import hardware
from textwright.training.hardware import autocast
from textwright.training.parallel import World
from textwright.training.preference import log_probability, preference_losses
from textwright.training.records import Look

MARGINS = "margins.bin"  # float32: what the base thinks of each pair
WIDE = 4096  # tokens of a batch that is only measured
QUICK = 64  # pairs looked at during training
JUDGED = 500  # and at the end


class PreferenceBuckets(LengthBuckets):
    """Pairs of answers whose longer sides are of similar lengths.

    Args:
        chosen, rejected: the answers with what stands in front of them.
        margins: (pairs,) see `Contrast`.
        beta: see `Contrast`.
        batch_tokens: tokens that each side of a batch has at most, padding included.
        seed: of the order.
    """

    def __init__(
        self, chosen: Marked, rejected: Marked, margins: Tensor, beta: float, batch_tokens: int, seed: int
    ) -> None:
        self.sides = [MarkedBuckets(side, batch_tokens, seed) for side in (chosen, rejected)]
        self.margins, self.beta = margins, beta
        lengths = [side.longer for side in self.sides]
        super().__init__(torch.maximum(*lengths), torch.minimum(*lengths), batch_tokens, seed)

    def in_order(self, pairs: int) -> Iterator[Batch]:
        """The first pairs."""
        return self.first(torch.ones_like(self.longer), pairs)

    def gather(self, numbers: Tensor, epoch: int) -> Batch:
        """The batch of these pairs."""
        chosen, rejected = (side.gather(numbers, epoch) for side in self.sides)
        lengths = self.sides[1].longer[numbers] - 1
        contrast = Contrast(rejected.tokens, rejected.targets, lengths, self.margins[numbers], self.beta)
        return replace(chosen, contrast=contrast)


class PreferenceJob(ExampleJob):
    """Args: config, and the run's folder, where the examples were prepared."""

    def __init__(self, config: TextRun, out: Path) -> None:
        super().__init__(config, out)
        self.pairs = {name: self._open(name) for name in SPLITS}
        self.epoch_tokens = len(self.pairs["train"].margins)

    def _open(self, name: str) -> PreferenceBuckets:
        assert self.config.examples is not None
        data, training = self.out / "data", self.config.training
        rejected = open_marked(data / REJECTED / name)
        margins = mapped(data / REJECTED / name / MARGINS, rejected.corpus.facts.documents, torch.float32)
        how = self.config.examples.beta, training.batch_tokens, training.seed
        return PreferenceBuckets(self.marked[name], rejected, margins, *how)

    @classmethod
    def request(cls, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What the base thinks of the pairs depends on its weights and on how they are read."""
        files = [Path(asked["base"]) / name for name in (WEIGHTS, ADAPTER)]
        return {
            **super().request(asked),
            "packed": (asked.get("adapter") or {}).get("packed"),
            "precision": asked.get("training", {}).get("precision", "auto"),
            "weights": [[file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.exists()],
        }

    @staticmethod
    def prepare(asked: Mapping[str, Any], folder: Path, progress: Progress) -> None:
        ExampleJob.prepare(asked, folder, progress)
        base, training = Path(asked["base"]), asked.get("training", {})
        place = hardware.choose(training.get("device", "auto"), training.get("precision", "auto"))
        model = load_model(base, read_run(base), place.device).float()  # as it will be trained
        if packing := (asked.get("adapter") or {}).get("packed"):
            rounded(model, packing)  # what the adapter begins with
        for name in SPLITS:
            sides = [open_marked(folder / name), open_marked(folder / REJECTED / name)]
            scores = [_scores(model, side, place.precision, f"asking the base, {name}", progress) for side in sides]
            (folder / REJECTED / name / MARGINS).write_bytes(array("f", (scores[0] - scores[1]).tolist()).tobytes())

    def describe(self) -> str:
        kept = {name: len(pairs.margins) for name, pairs in self.pairs.items()}
        return (
            f"preferences: {kept['train']:,} pairs of answers to train on ({self.facts.left_out(self.longest)}), "
            f"{kept['valid']:,} to validate, {kept['test']:,} to test\n{self.audit()}"
        )

    def audit(self) -> str:
        """The first pair as the model meets it: each token that counts stands in []."""
        rejected = self.pairs["train"].sides[1]
        shown = self._shown(rejected.gather(torch.tensor([0]), 0), rejected.marked.corpus)
        return f"{super().audit()}\nrather than:   {shown[:600]!r}"

    def sizes(self) -> list[tuple[str, object]]:
        alike = [row for row in super().sizes() if row[0] not in ("training examples", "training answers, tokens")]
        return [("training pairs of answers", self.epoch_tokens), *alike]

    def batches(self, model: LanguageModel, world: World) -> Batches:
        return self.pairs["train"]

    def validate(self, model: LanguageModel, *, trained: bool) -> Look:
        losses, _ = self._judged(model, "valid", QUICK)
        return Look(float(losses.mean()))

    def measure(self, model: LanguageModel) -> Measures:
        rows = []
        facts: list[tuple[str, object]] = []
        for name in ("valid", "test"):
            if not len(self.pairs[name].margins):
                continue
            losses, z = self._judged(model, name, JUDGED)
            better = float((z > 0).double().mean())
            rows.append((name, len(z), round(float(losses.mean()), 4), round(better, 4), round(float(z.mean()), 4)))
            facts.append((f"{name} share of pairs preferred rightly", round(better, 4)))
        figures = table(["pairs", "judged", "loss, nats a pair", "preferred rightly", "mean margin, β nats"], rows)
        return Measures(facts, figures, [Section("Preferences", [figures, self.audit()])])

    @torch.no_grad()
    def _judged(self, model: LanguageModel, name: str, count: int) -> tuple[Tensor, Tensor]:
        """Losses and z of the first pairs of a split; see `preference_losses`."""
        found = []
        for batch in self.pairs[name].in_order(count):
            batch = batch.to(model.device)
            with autocast(model.device, self.config.training.precision):
                found.append(preference_losses(model, batch)[1:])
        losses, z = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        return losses, z


@torch.no_grad()
def _scores(model: LanguageModel, side: Marked, precision: str, what: str, progress: Progress) -> Tensor:
    """(texts,) log-probability of what carries loss."""
    buckets = MarkedBuckets(side, WIDE, 0)
    scores, done = torch.zeros(len(buckets.longer)), 0
    for numbers in by_length(buckets.longer, WIDE):
        batch = buckets.gather(numbers, 0).to(model.device)
        with autocast(model.device, precision):
            scores[numbers] = log_probability(model, batch.tokens, batch.targets, batch.lengths).float().cpu()
        done += int(buckets.longer[numbers].sum())
        progress(what, done)
    if not torch.isfinite(scores).all():
        raise ConfigError("the base finds an answer impossible: no preference can be learned from there")
    return scores
