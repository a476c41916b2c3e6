"""Choosing a token: greedy, or drawn with noise that belongs to the request and the position, not to the process."""

from __future__ import annotations

import torch
from torch import Tensor

from textwright.decoding.rows import Rows


def choose(logits: Tensor, rows: Rows) -> Tensor:
    """One token a row from processed logits (rows, vocab): the likeliest where the temperature is 0, else drawn."""
    likeliest = logits.argmax(-1)
    greedy = rows.setting("temperature").squeeze(1) == 0
    if bool(greedy.all()):
        return likeliest
    drawn = draw(logits, uniform(rows.seed, rows.written))
    return torch.where(greedy, likeliest, drawn)


def draw(logits: Tensor, noise: Tensor) -> Tensor:
    """Inverse transform sampling: the first token whose cumulative probability exceeds the noise (rows,) in [0, 1)."""
    cumulative = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], right=True).squeeze(1)


def uniform(seed: Tensor, position: Tensor) -> Tensor:
    """(rows,) float64 in [0, 1), a function of seed and position (rows,) alone.

    SplitMix64 (Steele, Lea and Flood 2014) over seed and position, its upper 40 bits as the fraction.
    """
    mixed = _mix(_mix(seed) + position)
    return _shift(mixed, 24).double() / 2**40


def _mix(x: Tensor) -> Tensor:
    x = x + -7046029254386353131  # 0x9E3779B97F4A7C15, the golden ratio; int64 arithmetic wraps around
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of 64-bit integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
