"""What is minimised: the sum of token losses, to be divided by the number of target tokens of the whole global batch.

The division happens in the loop, once, by the count over all micro-batches and ranks; so k accumulated micro-batches or
k processes give the gradient of one batch, label smoothing and a last partial window included.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from textwright.models.base import Hidden, LanguageModel, Source
from textwright.models.state import State
from textwright.text.batching import IGNORE, Batch

CHUNK = 2**26  # logits that may stand in memory at once; beyond, they are computed in chunks and again for the backward


class Objective(nn.Module):
    """Next-token cross-entropy of a model, with a source or without.

    Args:
        model: any model of the contract; this module is what data-parallel wrappers wrap.
        label_smoothing: ε of Szegedy et al. 2016, section 7: the target is 1 - ε true and ε uniform.
        r_drop: α of Liang et al. 2021, eq. 4: every batch is read twice with different dropout, and the two
            distributions are drawn together. The loss is half of the paper's, so that it stays a mean of token losses.

    Attributes:
        sampled: share of the tokens a model reads that are its own guesses (Bengio et al. 2015; in two passes, as for
            Transformers in Mihaylova and Martins 2019). The loop raises it over the training.
    """

    def __init__(self, model: LanguageModel, label_smoothing: float = 0.0, r_drop: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing, self.r_drop = label_smoothing, r_drop
        self.sampled = 0.0

    def forward(self, batch: Batch, state: State | None = None) -> tuple[Tensor, State | None]:
        """The sum of losses (nats) over the batch's targets, float32, and the state after it."""
        if self.training and self.sampled:
            batch = self._guessed(batch)
        hidden, after = self._hidden(batch, state)
        targets = batch.targets.flatten()
        if not (self.training and self.r_drop):
            return self._chunked(hidden, None, targets), after
        other, _ = self._hidden(batch, None)
        return self._chunked(hidden, other, targets), after

    def _hidden(self, batch: Batch, state: State | None) -> tuple[Hidden, State | None]:
        hidden, after = self.model.hidden(batch.tokens, batch.lengths, state, source_of(batch))
        return hidden.flat(), after

    def _chunked(self, hidden: Hidden, other: Hidden | None, targets: Tensor) -> Tensor:
        rows = max(1, CHUNK // self.model.head.out_features)
        if len(targets) <= rows:
            return self._loss(hidden, other, targets)
        others = [None] * -(-len(targets) // rows) if other is None else other.split(rows)
        parts = zip(hidden.split(rows), others, torch.split(targets, rows), strict=True)
        if hidden.values.requires_grad:
            return torch.stack([checkpoint(self._loss, *part, use_reentrant=False) for part in parts]).sum()
        return torch.stack([self._loss(*part) for part in parts]).sum()

    def _loss(self, hidden: Hidden, other: Hidden | None, targets: Tensor) -> Tensor:
        logits = self.model.logits(hidden).float()
        loss = self._cross_entropy(hidden, logits, targets)
        if other is None:
            return loss
        second = self.model.logits(other).float()
        loss = (loss + self._cross_entropy(other, second, targets)) / 2
        return loss + self.r_drop / 4 * both_ways(logits, second, targets != IGNORE)

    def _cross_entropy(self, hidden: Hidden, logits: Tensor, targets: Tensor) -> Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
        if hidden.penalty is not None and self.training:
            loss = loss + hidden.penalty.masked_fill(targets == IGNORE, 0).sum()
        return loss

    @torch.no_grad()
    def _guessed(self, batch: Batch) -> Batch:
        """The batch with some of its tokens replaced by what the model takes for likeliest there."""
        hidden, _ = self.model.hidden(batch.tokens, batch.lengths, None, source_of(batch))
        guesses = torch.stack([self.model.logits(part).argmax(-1) for part in _rows(hidden)])
        chosen = torch.rand(guesses.shape, device=guesses.device) < self.sampled
        tokens = torch.where(chosen[:, :-1], guesses[:, :-1], batch.tokens[:, 1:])
        return replace(batch, tokens=torch.cat([batch.tokens[:, :1], tokens], 1))


def source_of(batch: Batch) -> Source | None:
    """What the batch's rows are written from."""
    if batch.source is None or batch.source_lengths is None:
        return None
    return Source(batch.source, batch.source_lengths)


def both_ways(first: Tensor, second: Tensor, real: Tensor) -> Tensor:
    """KL(p‖q) + KL(q‖p) of two distributions given by logits (n, vocab), summed over the real (n,) of them."""
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum(-1).masked_fill(~real, 0).sum()


def _rows(hidden: Hidden) -> list[Hidden]:
    """One row at a time, so that the logits of a whole batch need not stand in memory."""
    copied = [None] * len(hidden.values) if hidden.copied is None else list(hidden.copied)
    ids = [None] * len(copied) if hidden.copied is None or hidden.ids is None else list(hidden.ids)
    return [
        Hidden(values, part, None if part is None or own is None else own.expand_as(part))
        for values, part, own in zip(hidden.values, copied, ids, strict=True)
    ]
