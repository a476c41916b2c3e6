"""Choosing a token: greedy, or drawn with noise that belongs to the request and the position, not to the process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from textwright.decoding.largest import first_largest
from textwright.decoding.rows import BANNED, COLD, Processor, Rows
from textwright.errors import TextwrightError
from textwright.noise import uniform

BLOCK = 64  # tokens whose probabilities are summed first


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
    """Inverse transform sampling: the first token whose cumulative probability exceeds the noise (rows,) in [0, 1).

    First the block of tokens is found in which that happens, then the token: sums are one vectorised pass where
    cumulative ones are added one by one.
    """
    weight = (logits - logits.amax(-1, keepdim=True)).exp_()
    blocks = F.pad(weight, (0, -weight.shape[1] % BLOCK)).view(len(weight), -1, BLOCK)
    sums = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    wanted = noise[:, None] * sums[:, -1:]
    block = _first_above(sums, wanted)
    before = F.pad(sums, (1, 0)).gather(1, block)
    inside = blocks[torch.arange(len(weight), device=weight.device), block.squeeze(1)].cumsum(-1, dtype=torch.float64)
    return (block * BLOCK + _first_above(inside, wanted - before)).squeeze(1).clamp_(max=logits.shape[1] - 1)


def _first_above(cumulative: Tensor, wanted: Tensor) -> Tensor:
    """(rows, 1) the first place of (rows, n) above what is wanted (rows, 1); rounding never leads past the last one."""
    most = cumulative[:, -1:] * (1 - 2**-50)
    found = torch.searchsorted(cumulative, torch.minimum(wanted, most), right=True)
    return found.clamp_(max=cumulative.shape[1] - 1)  # not a number: every token is banned
