"""The largest of many values, faster than torch finds them on a CPU.

The largest values lie in the blocks whose maxima are the largest, and maxima of blocks are one vectorised pass: all
other values are looked at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64  # values of which the maximum is found first


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`values.topk(count)` of (rows, n)."""
    rows, width = values.shape
    blocks = width // BLOCK
    if blocks <= 2 * count:
        return values.topk(count, -1)
    chosen = values[:, : blocks * BLOCK].view(rows, blocks, BLOCK).amax(-1).topk(count, -1).indices
    inside = torch.arange(BLOCK, device=values.device)
    rest = torch.arange(blocks * BLOCK, width, device=values.device).expand(rows, -1)
    columns = torch.cat([(chosen[:, :, None] * BLOCK + inside).flatten(1), rest], 1)
    best, places = values.gather(1, columns).topk(count, -1)
    return best, columns.gather(1, places)


def first_largest(values: Tensor) -> Tensor:
    """`values.argmax(-1)` of (rows, n): of equal ones the first."""
    blocks = values.shape[1] // BLOCK
    if blocks < BLOCK:
        return values.argmax(-1)
    whole = values[:, : blocks * BLOCK].view(-1, blocks, BLOCK)
    best, block = whole.amax(-1).max(-1)
    rows = torch.arange(len(values), device=values.device)
    found = block * BLOCK + whole[rows, block].argmax(-1)
    rest = values[:, blocks * BLOCK :]
    if not rest.shape[1]:
        return found
    other, place = rest.max(-1)
    return torch.where(other > best, blocks * BLOCK + place, found)
