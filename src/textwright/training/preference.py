"""Direct preference optimisation (Rafailov et al. 2023, eq. 7): of two answers the one that people like better becomes
likelier than the other, measured from the model that training began with.

    z = β [(log π(chosen) - log π(rejected)) - (log π₀(chosen) - log π₀(rejected))]        loss = -log σ(z)

With label smoothing ε the labels are believed to be wrong so often: -(1 - ε) log σ(z) - ε log σ(-z) (Mitchell 2023).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from textwright.models.base import Hidden, LanguageModel
from textwright.text.batching import IGNORE, Batch


def preference_losses(model: LanguageModel, batch: Batch, smoothing: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row (rows,): what is minimised, the loss without smoothing, and z; zeros for rows without a target."""
    contrast = batch.contrast
    assert contrast is not None
    chosen = log_probability(model, batch.tokens, batch.targets, batch.lengths)
    rejected = log_probability(model, contrast.tokens, contrast.targets, contrast.lengths)
    real = (batch.targets != IGNORE).any(1)
    z = (contrast.beta * (chosen - rejected - contrast.margin)).masked_fill(~real, 0.0)
    plain, other = -F.logsigmoid(z), -F.logsigmoid(-z)
    losses = (1 - smoothing) * plain + smoothing * other
    return losses.masked_fill(~real, 0.0), plain.masked_fill(~real, 0.0), z


def log_probability(model: LanguageModel, tokens: Tensor, targets: Tensor, lengths: Tensor | None) -> Tensor:
    """(rows,) float32: the log-probability of the targets of each row (rows, time) that carry loss."""
    hidden, _ = model.hidden(tokens, lengths, None, None)

    def row(values: Tensor, wanted: Tensor) -> Tensor:
        logits = model.logits(Hidden(values)).float()
        return logits.log_softmax(-1).gather(1, wanted[:, None]).sum()

    sums = []
    for values, wanted in zip(hidden.values, targets, strict=True):
        kept = wanted != IGNORE  # of a row the logits of its answer alone, and not kept for the way back
        if values.requires_grad:
            sums.append(checkpoint(row, values[kept], wanted[kept], use_reentrant=False))
        else:
            sums.append(row(values[kept], wanted[kept]))
    return torch.stack(sums)
