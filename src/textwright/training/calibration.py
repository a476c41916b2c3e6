"""Two numbers that a validation text gives a trained model: how far its logits are believed, and how far frequency.

    p'_v ∝ exp(a z_v + c log q_v)        q_v = (n_v + 1) / Σ_u (n_u + 1), where v stands n_v times in the training text

A network that has read its text many times is surer of itself than it may be on another one: a is the inverse
temperature of Guo et al. 2017, section 4.2. What it is less sure of then belongs to the words that are frequent anyway,
and a softmax from samples (`sampled`) errs in favour of rare words: c. The loss is convex in both numbers, so Newton's
method finds the best ones; they begin at 1 and 0, and to stay there counts as much as one token.

Axes: N positions, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from textwright.models.base import renewed
from textwright.models.rnn import RecurrentLM
from textwright.text.batching import IGNORE, Batch

READ = 100_000  # tokens of the validation text that are read at most
FITTED = 8_192  # and those of them, evenly spread, whose loss is made small: two numbers need no more
ROUNDS = 4
CHUNK = 1 << 22  # logits at once


@dataclass(frozen=True)
class Calibration:
    """The two numbers, and the loss in nats a token before and after, over `tokens` tokens."""

    scale: float
    frequency: float
    before: float
    after: float
    tokens: int

    def __str__(self) -> str:
        return (
            f"Calibrated on {self.tokens:,} validation tokens: logits times {self.scale:.3f} and log-frequencies times "
            f"{self.frequency:.3f}, their loss {self.before:.4f} became {self.after:.4f}."
        )


@torch.no_grad()
def calibrate(model: RecurrentLM, batches: Iterable[Batch], tokens: int, counts: Tensor) -> Calibration:
    """Fit the two numbers and put them into the model's weights; a model that is calibrated stays as it is.

    Args:
        model: on its device; put into evaluation mode.
        batches: a validation text of so many `tokens`.
        counts: (V,), how often each token stands in the training text.
    """
    model.eval()
    frequency = (counts.double() + 1).log().to(model.device)
    frequency -= frequency.logsumexp(0)
    hidden, targets = _read(model, batches, max(1, tokens // FITTED))
    start = torch.tensor([1.0, 0.0], dtype=torch.float64, device=model.device)
    tried, numbers = [], start
    for _ in range(ROUNDS):
        loss, slope, curve = _moments(model, hidden, targets, frequency.float(), numbers)
        tried.append((loss, numbers))
        numbers = numbers - torch.linalg.solve(curve + torch.eye(2).to(curve), slope + numbers - start)
    best, numbers = min(tried, key=lambda item: item[0])
    scale, weight = numbers.tolist()
    if scale <= 0:  # a model that is worse than none: nothing to believe, and no weights that say so
        best, scale, weight = tried[0][0], 1.0, 0.0
    model.adjust(scale, weight * frequency.float())
    return Calibration(scale, weight, tried[0][0] / len(targets), best / len(targets), len(targets))


def _read(model: RecurrentLM, batches: Iterable[Batch], every: int) -> tuple[Tensor, Tensor]:
    """What the head reads (N, W) and the targets (N,) at every so manieth place."""
    hidden, targets, state = [], [], None
    for batch in batches:
        batch = batch.to(model.device)
        if batch.fresh is not None:
            state = renewed(model, state, batch.fresh)
        output, state = model.hidden(batch.tokens, batch.lengths, state, None)
        real = (batch.targets != IGNORE).flatten().nonzero()[::every, 0]
        hidden.append(output.values.flatten(0, 1)[real])
        targets.append(batch.targets.flatten()[real])
    return torch.cat(hidden), torch.cat(targets)


def _moments(
    model: RecurrentLM, hidden: Tensor, targets: Tensor, frequency: Tensor, numbers: Tensor
) -> tuple[float, Tensor, Tensor]:
    """The summed loss, its gradient (2,) and its Hessian (2, 2), for f = (z, log q): E[f] - f_target, and the
    covariance of f under p'."""
    scale, weight = numbers.tolist()
    loss, slope, curve = 0.0, torch.zeros_like(numbers), numbers.new_zeros(2, 2)
    rows = max(1, CHUNK // len(frequency))
    for part, target in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True):
        z = model.head(part)
        logits = scale * z + weight * frequency
        chances = logits.softmax(-1)
        weighed = chances * z
        means = torch.stack([weighed.sum(-1), chances @ frequency], -1).double()
        own = torch.stack([z.gather(1, target[:, None])[:, 0], frequency[target]], -1).double()
        slope += (means - own).sum(0)
        mixed = (weighed @ frequency).sum()
        squares = torch.stack([torch.dot(weighed.flatten(), z.flatten()), mixed, mixed, chances.sum(0) @ frequency**2])
        curve += squares.double().view(2, 2) - means.T @ means
        loss += float((logits.logsumexp(-1) - logits.gather(1, target[:, None])[:, 0]).sum())
    return loss, slope, curve
