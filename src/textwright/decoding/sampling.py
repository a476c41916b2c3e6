"""Choosing a token: greedy, or drawn with noise that belongs to the request and the position, not to the process."""

from __future__ import annotations

import torch
from torch import Tensor

from textwright.decoding.rows import Rows
from textwright.noise import uniform

COLD = 1e-6  # temperatures below are 0: float32 cannot divide by less without overflow


def choose(logits: Tensor, rows: Rows) -> Tensor:
    """One token a row from processed logits (rows, vocab): the likeliest where the temperature is 0, else drawn."""
    likeliest = logits.argmax(-1)
    greedy = rows.setting("temperature").squeeze(1) < COLD
    if bool(greedy.all()):
        return likeliest
    drawn = draw(logits, uniform(rows.seed, rows.written))
    return torch.where(greedy, likeliest, drawn)


def draw(logits: Tensor, noise: Tensor) -> Tensor:
    """Inverse transform sampling: the first token whose cumulative probability exceeds the noise (rows,) in [0, 1)."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], right=True).squeeze(1)
