"""Choosing a token: greedy, or drawn with noise that belongs to the request and the position, not to the process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from textwright.decoding.largest import first_largest
from textwright.decoding.rows import BANNED, Processor, Rows
from textwright.errors import TextwrightError
from textwright.noise import uniform

COLD = 1e-6  # temperatures below are 0: float32 cannot divide by less without overflow


def choose_token(logits: Tensor, rows: Rows, processors: Sequence[Processor]) -> tuple[Tensor, Tensor]:
    """One token a row from the model's logits (rows, vocab) and its log-probability under the model, both (rows,).

    Raises:
        TextwrightError: a row has no token left that is not banned.
    """
    processed = logits
    for process in processors:
        processed = process(processed, rows)
    tokens = choose(processed, rows)
    if processors and bool((processed.gather(1, tokens[:, None]) == BANNED).any()):
        raise TextwrightError("every token is banned for at least one text: lower no_repeat_ngram or the minimum")
    return tokens, -F.cross_entropy(logits, tokens, reduction="none")


def choose(logits: Tensor, rows: Rows) -> Tensor:
    """One token a row from processed logits (rows, vocab): the likeliest where the temperature is 0, else drawn."""
    greedy = rows.setting("temperature").squeeze(1) < COLD
    if bool(greedy.all()):
        return first_largest(logits)
    drawn = draw(logits, uniform(rows.seed, rows.written))
    return torch.where(greedy, first_largest(logits), drawn) if bool(greedy.any()) else drawn


def draw(logits: Tensor, noise: Tensor) -> Tensor:
    """Inverse transform sampling: the first token whose cumulative probability exceeds the noise (rows,) in [0, 1)."""
    weight = (logits - logits.amax(-1, keepdim=True)).exp_()
    cumulative = weight.cumsum(-1, dtype=torch.float64)
    found = torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    return found.clamp_(max=logits.shape[1] - 1)  # where there is nothing to find: every token is banned
