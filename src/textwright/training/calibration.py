"""Two numbers that a validation text gives a trained model: how far its logits count, and how far the words' frequency.

    p'_v ∝ exp(a z_v + c log q_v)        q_v = (n_v + 1) / Σ_u (n_u + 1), where v stands n_v times in the training text

A network that has read its text many times is surer of itself than it may be on another one: a is the inverse
temperature of Guo et al. 2017, section 4.2. What it is less sure of then belongs to the words that are frequent anyway,
and a softmax from samples (`sampled`) errs in favour of rare words: c. The loss is convex in both, so Newton's method
finds the best ones. It begins at a = 1 and c = 0, and a few tokens' worth of loss speaks for staying there.

Axes: N positions, W width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import Tensor

from textwright.config import Config
from textwright.models.base import renewed
from textwright.models.rnn import RecurrentLM
from textwright.text.batching import IGNORE, Batch

FITTED = 4_096  # tokens at most, evenly spread, whose loss is made small: two numbers need no more
INERTIA = 10  # tokens whose loss is least at the beginning
ROUNDS = 12
STRIDE = 0.5  # the farthest that a number moves in a round: where a model is very sure, a whole step leads astray
LEAST = 0.05  # of the scale
SETTLED = 1e-5  # nats a token that a round is worth
CHUNK = 1 << 22  # logits at once


class Calibration(Config):
    """The two numbers, and the loss in nats a token before and after, over `tokens` validation tokens."""

    scale: float
    frequency: float
    before: float
    after: float
    tokens: int

    def __str__(self) -> str:
        return (
            f"logits times {self.scale:.3f}, log-frequencies times {self.frequency:.3f}; on {self.tokens:,} validation "
            f"tokens the loss was {self.before:.4f} and became {self.after:.4f}"
        )


@torch.no_grad()
def calibrated(
    model: RecurrentLM, batches: Iterable[Batch], tokens: int, counts: Tensor
) -> tuple[RecurrentLM, Calibration | None]:
    """A copy of the model with the two numbers in its weights, and what they are; the model itself and None where its
    loss is not finite.

    Args:
        model: on its device, in evaluation mode.
        batches: a validation text of so many `tokens`.
        counts: (V,), how often each token stands in the training text.
    """
    frequency = (counts.double() + 1).log().to(model.device)
    frequency = (frequency - frequency.logsumexp(0)).float()
    hidden, targets = _read(model, batches, -(-tokens // FITTED))
    (scale, weight), before, after = _fitted(model, hidden, targets, frequency)
    if not math.isfinite(after):  # of broken weights: the look finds them, and training is rolled back
        return model, None
    copy = deepcopy(model)
    copy.adjust(scale, weight * frequency)
    size = len(targets)
    return copy, Calibration(scale=scale, frequency=weight, before=before / size, after=after / size, tokens=size)


def _read(model: RecurrentLM, batches: Iterable[Batch], every: int) -> tuple[Tensor, Tensor]:
    """What the head reads (N, W) and the targets (N,), at one of `every` places."""
    hidden, targets, state, seen = [], [], None, 0
    for batch in batches:
        batch = batch.to(model.device)
        if batch.fresh is not None:
            state = renewed(model, state, batch.fresh)
        output, state = model.hidden(batch.tokens, batch.lengths, state, None)
        real = (batch.targets != IGNORE).flatten().nonzero()[:, 0]
        chosen = real[-seen % every :: every]
        seen += len(real)
        hidden.append(output.values.flatten(0, 1)[chosen])
        targets.append(batch.targets.flatten()[chosen])
    return torch.cat(hidden).float(), torch.cat(targets)


def _fitted(
    model: RecurrentLM, hidden: Tensor, targets: Tensor, frequency: Tensor
) -> tuple[tuple[float, float], float, float]:
    """The numbers, and the summed loss before and after: Newton's method with steps that are halved until the loss
    falls (Boyd and Vandenberghe 2004, algorithm 9.5)."""
    numbers = start = torch.tensor([1.0, 0.0], dtype=torch.float64, device=hidden.device)
    loss, slope, curve = _moments(model, hidden, targets, frequency, start)
    first = loss
    inertia = (INERTIA / len(targets)) * curve.diagonal().diag() + 1e-6 * torch.eye(2).to(curve)
    value = loss
    for _ in range(ROUNDS):
        pull = inertia @ (numbers - start)
        step = torch.linalg.solve(curve + inertia, slope + pull)
        if float((slope + pull) @ step) < SETTLED * len(targets):
            break
        step *= min(1.0, STRIDE / float(step.abs().max()))
        while float(step.abs().max()) > 1e-3:
            trial = numbers - step
            trial[0].clamp_(min=LEAST)
            found = _moments(model, hidden, targets, frequency, trial)
            weighed = found[0] + float((trial - start) @ inertia @ (trial - start)) / 2
            if weighed < value:
                break
            step = step / 2
        else:
            break
        numbers, value, (loss, slope, curve) = trial, weighed, found
    scale, weight = numbers.tolist()
    return (scale, weight), first, loss


def _moments(
    model: RecurrentLM, hidden: Tensor, targets: Tensor, frequency: Tensor, numbers: Tensor
) -> tuple[float, Tensor, Tensor]:
    """At `numbers` (2,), for f = (z, log q) and frequency log q (V,): the summed loss, its gradient (2,), which is
    E[f] - f_target, and its Hessian (2, 2), the covariance of f under p'."""
    scale, weight = numbers.tolist()
    loss, slope, curve = 0.0, torch.zeros_like(numbers), numbers.new_zeros(2, 2)
    rows = max(1, CHUNK // len(frequency))
    for part, target in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True):
        z = model.head(part)
        logits = scale * z + weight * frequency
        loss += float((logits.logsumexp(-1) - logits.gather(1, target[:, None])[:, 0]).sum())
        chances = logits.softmax(-1)
        means = torch.stack([(chances * z).sum(-1), chances @ frequency], -1)
        own = torch.stack([z.gather(1, target[:, None])[:, 0], frequency[target]], -1)
        slope += (means - own).double().sum(0)
        apart = z - means[:, :1]  # before it is squared: logits may have a large mean
        weighed = chances * apart
        both = (weighed @ frequency).sum()
        squares = (chances @ frequency.square() - means[:, 1].square()).sum()
        curve += torch.stack([torch.dot(weighed.flatten(), apart.flatten()), both, both, squares]).double().view(2, 2)
    return loss, slope, curve
