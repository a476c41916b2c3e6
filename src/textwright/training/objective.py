"""What is minimised: the sum of token losses, to be divided by the number of target tokens of the whole global batch.

The division happens in the loop, once, by the count over all micro-batches and ranks; so k accumulated micro-batches or
k processes give the gradient of one batch, label smoothing and a last partial window included.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from textwright.models.base import LanguageModel
from textwright.models.state import State
from textwright.text.batching import IGNORE, Batch

CHUNK = 2**26  # logits that may stand in memory at once; beyond, they are computed in chunks and again for the backward


class LanguageModelObjective(nn.Module):
    """Next-token cross-entropy of a model.

    Args:
        model: any model of the contract; this module is what data-parallel wrappers wrap.
        label_smoothing: ε of Szegedy et al. 2016, section 7: the target is 1 - ε true and ε uniform.
    """

    def __init__(self, model: LanguageModel, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch, state: State | None = None) -> tuple[Tensor, State | None]:
        """The sum of losses (nats) over the batch's targets, float32, and the state after it."""
        hidden, after = self.model.hidden(batch.tokens, batch.lengths, state, None)
        hidden, targets = hidden.flatten(0, 1), batch.targets.flatten()
        rows = max(1, CHUNK // self.model.head.out_features)
        if len(targets) <= rows:
            return self._loss(hidden, targets), after
        parts = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
        if hidden.requires_grad:
            return torch.stack([checkpoint(self._loss, *part, use_reentrant=False) for part in parts]).sum(), after
        return torch.stack([self._loss(*part) for part in parts]).sum(), after

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = self.model.head(hidden).float()
        smoothing = self.label_smoothing if self.training else 0.0
        return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
