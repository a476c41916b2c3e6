"""What is minimised: the sum of token losses, to be divided by the number of target tokens of the whole global batch.

The division happens in the loop, once, by the count over all micro-batches and ranks; so k accumulated micro-batches or
k processes give the gradient of one batch, label smoothing and a last partial window included.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from textwright.models.base import Hidden, LanguageModel, Source
from textwright.models.state import State
from textwright.text.batching import IGNORE, Batch
from textwright.training.cross_entropy import CHUNK, cross_entropy
from textwright.training.preference import preference_losses
from textwright.training.sampled import Sampler


class Losses(NamedTuple):
    """Sums over the targets of a batch, in nats, float32: what is minimised; the plain cross-entropy in it, without
    smoothing, penalties and gradient, which compares with that of other texts; and the state after the batch."""

    loss: Tensor
    plain: Tensor
    after: State | None


class Objective(nn.Module):
    """Next-token cross-entropy of a model, with a source or without; for batches with a contrast, see `preference`.

    Args:
        model: any model of the contract; this module is what data-parallel wrappers wrap.
        label_smoothing: ε of Szegedy et al. 2016, section 7: the target is 1 - ε true and ε uniform.
        r_drop: α of Liang et al. 2021, eq. 4: every batch is read twice with different dropout, and the two
            distributions are drawn together. The loss is half of the paper's, so that it stays a mean of token losses.
        sampler: estimates the softmax in training; then the plain loss of training is an estimate, too.

    Attributes:
        sampled: share of the tokens a model reads that are its own guesses (Bengio et al. 2015; in two passes, as for
            Transformers in Mihaylova and Martins 2019). The loop raises it over the training.
    """

    def __init__(
        self, model: LanguageModel, label_smoothing: float = 0.0, r_drop: float = 0.0, sampler: Sampler | None = None
    ) -> None:
        super().__init__()
        self.model, self.sampler = model, sampler
        self.label_smoothing, self.r_drop = label_smoothing, r_drop
        self.sampled = 0.0

    def forward(self, batch: Batch, state: State | None = None) -> Losses:
        """The losses of the batch's targets, and the state after it."""
        if batch.contrast is not None:
            losses = preference_losses(self.model, batch, self.label_smoothing if self.training else 0.0)
            return Losses(losses[0].sum(), losses[1].sum().detach(), None)
        if self.training and self.sampled:
            batch = self._guessed(batch)
        hidden, after = self._hidden(batch, state)
        targets = batch.targets.flatten()
        other = self._hidden(batch, None)[0] if self.training and self.r_drop else None
        loss, plain = self._chunked(hidden, other, targets).unbind()
        return Losses(loss, plain.detach(), after)

    def _hidden(self, batch: Batch, state: State | None) -> tuple[Hidden, State | None]:
        hidden, after = self.model.hidden(batch.tokens, batch.lengths, state, source_of(batch))
        return hidden.flat(), after

    def _chunked(self, hidden: Hidden, other: Hidden | None, targets: Tensor) -> Tensor:
        """(2,): what is minimised, and the plain loss."""
        if hidden.values.requires_grad and hidden.copied is None and other is None:
            return self._learned(hidden, targets)
        rows = max(1, CHUNK // self.model.head.out_features)
        if len(targets) <= rows:
            return self._loss(hidden, other, targets)
        others = [None] * -(-len(targets) // rows) if other is None else other.split(rows)
        parts = zip(hidden.split(rows), others, torch.split(targets, rows), strict=True)
        if hidden.values.requires_grad:
            return torch.stack([checkpoint(self._loss, *part, use_reentrant=False) for part in parts]).sum(0)
        return torch.stack([self._loss(*part) for part in parts]).sum(0)

    def _learned(self, hidden: Hidden, targets: Tensor) -> Tensor:
        """The same with its gradient, where the head is all there is between hidden states and probabilities."""
        head, smoothing = self.model.head, self.label_smoothing if self.training else 0.0
        if self.training and self.sampler is not None:
            loss, plain = self.sampler.loss(hidden.values, head.weight, head.bias, targets, IGNORE)
        else:
            loss, plain = cross_entropy(hidden.values, head.weight, head.bias, targets, IGNORE, smoothing=smoothing)
        if self.training and hidden.penalty is not None:
            loss = loss + hidden.penalty.masked_fill(targets == IGNORE, 0).sum()
        return torch.stack([loss, plain])

    def _loss(self, hidden: Hidden, other: Hidden | None, targets: Tensor) -> Tensor:
        logits = self.model.logits(hidden)
        losses = self._cross_entropy(hidden, logits, targets)
        if other is None:
            return losses
        second = self.model.logits(other)
        losses = (losses + self._cross_entropy(other, second, targets)) / 2
        apart = self.r_drop / 4 * both_ways(logits.float(), second.float(), targets != IGNORE)
        return torch.stack([losses[0] + apart, losses[1]])

    def _cross_entropy(self, hidden: Hidden, logits: Tensor, targets: Tensor) -> Tensor:
        ignored = targets == IGNORE
        logarithms = logits.float().log_softmax(-1)
        plain = -logarithms.gather(1, targets.masked_fill(ignored, 0)[:, None])[:, 0].masked_fill(ignored, 0).sum()
        loss = plain
        if self.training and self.label_smoothing:
            uniform = -logarithms.mean(-1).masked_fill(ignored, 0).sum()
            loss = (1 - self.label_smoothing) * plain + self.label_smoothing * uniform
        if self.training and hidden.penalty is not None:
            loss = loss + hidden.penalty.masked_fill(ignored, 0).sum()
        return torch.stack([loss, plain])

    @torch.no_grad()
    def _guessed(self, batch: Batch) -> Batch:
        """The batch with some of its tokens replaced by what the model takes for likeliest there; what it never writes
        itself, a second token that every text begins with, stays."""
        hidden, _ = self.model.hidden(batch.tokens, batch.lengths, None, source_of(batch))
        guesses = torch.stack([self.model.logits(part).argmax(-1) for part in _rows(hidden)])
        chosen = torch.rand(guesses.shape, device=guesses.device) < self.sampled
        chosen &= batch.targets != IGNORE
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
