"""A watermark that statistics can find and readers cannot: a secret share of the vocabulary is favoured, drawn anew
after every token (Kirchenbauer et al. 2023, "A Watermark for Large Language Models", alg. 2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from textwright.decoding.rows import Rows
from textwright.noise import mix, uniform


class Detection(NamedTuple):
    """How many of the counted tokens are green, how many would be by chance, and how unlikely that is."""

    green: int
    counted: int
    expected: float
    z: float
    p: float


def watermark(logits: Tensor, rows: Rows) -> Tensor:
    """Add δ to the logits of the green tokens."""
    newest = rows.tokens.gather(1, rows.lengths[:, None] - 1)
    share, key = rows.setting("watermark_share"), rows.setting("watermark_key").long()
    tokens = torch.arange(logits.shape[1], device=logits.device)
    return logits + rows.setting("watermark").float() * greens(newest, tokens, key, share)


def greens(before: Tensor, tokens: Tensor, key: Tensor, share: Tensor) -> Tensor:
    """Whether tokens are green after the token before them; all arguments broadcast."""
    return uniform(mix(key) + before, tokens) < share


def detect(tokens: Sequence[int], *, share: float = 0.25, key: int = 15485863) -> Detection:
    """Look for a watermark in ids.

    A pair of tokens that comes again is counted once, because its second time is no independent evidence (sec. 4.1).
    `p` is the probability of so many green tokens or more in a text without this watermark, by the normal law.

    Raises:
        ValueError: fewer than two tokens.
    """
    if len(tokens) < 2:
        raise ValueError("a watermark needs at least two tokens to be seen")
    pairs = torch.tensor(sorted(set(itertools.pairwise(tokens))))
    green = int(greens(pairs[:, 0], pairs[:, 1], torch.tensor(key), torch.tensor(share)).sum())
    expected = share * len(pairs)
    z = (green - expected) / math.sqrt(len(pairs) * share * (1 - share))
    return Detection(green, len(pairs), expected, z, 0.5 * math.erfc(z / math.sqrt(2)))
