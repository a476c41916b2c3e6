"""A softmax over a large vocabulary, estimated from a part of it: for training alone.

    Z    = Σ_v exp z_v                                             what a softmax divides by
    Z'   = exp z_target + Σ_{v in S, v ≠ target} exp z_v / π_v     its estimate; π_v is the chance that v is in S
    loss = log Z' - z_target

S is drawn anew for every batch and shared by all its positions. A word is in it by a draw of its own (Poisson
sampling), or because it is a target in the batch, and weighs 1 / π there, so that Z' is right on average (Horvitz and
Thompson 1952). The most frequent words are always in S; the others by frequency^¾, the exponent of Mikolov et al. 2013.
Estimating Z from samples is the idea of Bengio and Senécal 2003; targets among the samples are from Jean et al. 2015.

Axes: N positions, W width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from textwright.training.cross_entropy import cross_entropy

POWER = 0.75
COLUMNS = 64  # S is filled up to a multiple of it with words that do not count: kernels are made for few shapes
NEVER = -1e9  # the offset of those


class Sampler:
    """Args:
    counts: (V,), how often each word stands in the training text.
    size: words drawn on average, targets not counted.

    Attributes:
        sparse: the gradient of the weight is a sparse tensor of the rows in S.
    """

    sparse = False

    def __init__(self, counts: Tensor, size: int) -> None:
        counts = counts.double() + 1  # a word that never was seen can be a target all the same
        self.drawn = inclusion(counts**POWER, size).float()
        self.share = counts / counts.sum()

    def loss(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignore: int
    ) -> tuple[Tensor, Tensor]:
        """The sum of the estimated losses, in nats, twice: with a gradient and without; see `cross_entropy`."""
        real = targets != ignore
        others = max(int(real.sum()) - 1, 0)  # whose targets are taken for draws from the text's words
        chance = 1 - (1 - self.drawn) * ((1 - self.share) ** others).float()
        chosen = torch.rand(len(chance), device=chance.device) < self.drawn
        chosen[targets[real]] = True
        words = chosen.nonzero()[:, 0]
        places = torch.searchsorted(words, targets.clamp(min=0)).masked_fill(~real, ignore)
        filling = -len(words) % COLUMNS
        offset = F.pad(-chance[words].log(), (0, filling), value=NEVER)
        words = F.pad(words, (0, filling))
        own = chance[targets.clamp(min=0)].log()  # the target itself weighs 1
        rows = F.embedding(words, weight, sparse=self.sparse)
        return cross_entropy(hidden, rows, offset if bias is None else offset + bias[words], places, ignore, own=own)


def inclusion(weights: Tensor, size: int) -> Tensor:
    """Chances (V,) in [0, 1] that sum to `size` and are proportional to `weights`, but for those that reach 1."""
    certain = torch.zeros(len(weights), dtype=torch.bool, device=weights.device)
    while True:
        factor = (size - int(certain.sum())) / weights.masked_fill(certain, 0).sum()
        chances = torch.where(certain, 1.0, weights * factor)
        if not bool((chances > 1).any()):
            return chances
        certain |= chances > 1
